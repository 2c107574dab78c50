"""Memory of weights and caches, as MindSpore parameters."""

from __future__ import annotations

import numpy as np
from mindspore import Parameter, Tensor
from numpy.typing import DTypeLike


def empty(name: str, shape: tuple[int, ...], dtype: DTypeLike) -> Parameter:
    """Create a parameter with undefined contents."""
    return _parameter(name, np.empty(shape, dtype))


def zeros(name: str, shape: tuple[int, ...], dtype: DTypeLike) -> Parameter:
    """Create a parameter of zeros whose memory is committed only when used."""
    return _parameter(name, np.zeros(shape, dtype))


def _parameter(name: str, values: np.ndarray) -> Parameter:
    parameter = Parameter(Tensor.from_numpy(np.zeros(1, values.dtype)), name=name, requires_grad=False)
    # `Parameter` would copy its source and so touch all of its memory; this uses numpy's memory without a copy.
    parameter.assign_value(Tensor.from_numpy(values))
    return parameter


def memory(data: Parameter) -> np.ndarray:
    """Return a parameter's writable memory: on a CPU `asnumpy` is a view, so weights are copied only once."""
    return data.asnumpy()
