"""Parameters whose memory can be written through numpy, so that weights are copied once and not twice."""

from __future__ import annotations

import numpy as np
from mindspore import Parameter, Tensor
from numpy.typing import DTypeLike


def empty(name: str, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> Parameter:
    """A parameter with undefined contents; `Parameter.asnumpy()` is a writable view of its memory on a CPU."""
    return Parameter(Tensor.from_numpy(np.empty(shape, dtype)), name=name, requires_grad=False)


def zeros(name: str, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> Parameter:
    """A parameter of zeros, of whose memory no more is taken than is used."""
    parameter = Parameter(Tensor.from_numpy(np.zeros(1, dtype)), name=name, requires_grad=False)
    # `Parameter` copies what it is made from, which would touch all of it; this takes numpy's own memory over.
    parameter.assign_value(Tensor.from_numpy(np.zeros(shape, dtype)))
    return parameter
