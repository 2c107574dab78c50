"""The memory of weights and caches: parameters of MindSpore."""

from __future__ import annotations

import numpy as np
from mindspore import Parameter, Tensor
from numpy.typing import DTypeLike


def empty(name: str, shape: tuple[int, ...], dtype: DTypeLike) -> Parameter:
    """A parameter with undefined contents."""
    return _parameter(name, np.empty(shape, dtype))


def zeros(name: str, shape: tuple[int, ...], dtype: DTypeLike) -> Parameter:
    """A parameter of zeros, of whose memory no more is taken than is used."""
    return _parameter(name, np.zeros(shape, dtype))


def _parameter(name: str, values: np.ndarray) -> Parameter:
    parameter = Parameter(Tensor.from_numpy(np.zeros(1, values.dtype)), name=name, requires_grad=False)
    # `Parameter` copies what it is made from, which would touch all of it; this takes numpy's own memory over.
    parameter.assign_value(Tensor.from_numpy(values))
    return parameter


def memory(data: Parameter) -> np.ndarray:
    """A parameter's memory, to be written to: on a CPU `asnumpy` is a view, so weights are copied only once."""
    return data.asnumpy()
