"""Presents tensors that MindSpore has already loaded as a checkpoint on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from inference.checkpoint.tensor import Checkpoint, StoredTensor


@dataclass(frozen=True, kw_only=True)
class ArrayTensor(StoredTensor):
    """A tensor in memory, float32 or float16."""

    array: np.ndarray

    @property
    def stored_bytes(self) -> int:
        return self.array.nbytes

    def read_into(self, out: np.ndarray) -> None:
        np.copyto(out.reshape(self.shape), self.array)

    def read_bytes_into(self, out: np.ndarray) -> None:
        out.reshape(-1)[:] = np.ascontiguousarray(self.array).view(np.uint8).reshape(-1)

    def rows(self, begin: int, end: int) -> ArrayTensor:
        return _tensor(self.name, self.array[begin:end])


def checkpoint_of(parameters: Mapping[str, Any]) -> Checkpoint:
    """The tensors of a dict of MindSpore parameters, without scalars such as the step count of a training run."""
    return {name: _tensor(name, _values(value)) for name, value in parameters.items() if value.ndim}


def _values(parameter: Any) -> np.ndarray:
    import mindspore

    # numpy has no bfloat16.
    values = parameter.astype(mindspore.float32) if parameter.dtype == mindspore.bfloat16 else parameter
    array: np.ndarray = values.asnumpy()
    return array


def _tensor(name: str, array: np.ndarray) -> ArrayTensor:
    return ArrayTensor(name=name, dtype=str(array.dtype), shape=array.shape, segments=(), array=array)
