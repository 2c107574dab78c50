"""Parameters whose memory can be written through numpy, so that weights are copied once and not twice."""

from __future__ import annotations

import numpy as np
from mindspore import Parameter, Tensor


def empty(name: str, shape: tuple[int, ...]) -> Parameter:
    """A float32 parameter with undefined contents; `Parameter.asnumpy()` is a writable view of its memory on a CPU."""
    return Parameter(Tensor.from_numpy(np.empty(shape, np.float32)), name=name, requires_grad=False)


def zeros(name: str, shape: tuple[int, ...]) -> Parameter:
    """A float32 parameter of zeros."""
    return Parameter(Tensor.from_numpy(np.zeros(shape, np.float32)), name=name, requires_grad=False)
