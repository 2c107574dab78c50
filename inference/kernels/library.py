"""The built kernels as Python functions on numpy arrays, for loading weights and for the tests.

Every function checks shapes and types before a pointer leaves Python.
"""

from __future__ import annotations

import ctypes
import os
from functools import lru_cache

import numpy as np

from inference.kernels.build import library_path
from inference.kernels.formats import Format

_POINTER, _LONG, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_float


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(library_path()))
    library.kernels_name.restype = ctypes.c_char_p
    library.kernels_use.argtypes = [ctypes.c_char_p]
    library.kernels_set_threads.argtypes = [ctypes.c_int]
    library.kernels_quantise.argtypes = [_INT, _POINTER, _LONG, _LONG, _POINTER]
    library.kernels_linear.argtypes = [_INT, _POINTER, _LONG, _LONG, _POINTER, _LONG, *[_POINTER] * 3]
    library.kernels_read.argtypes = [_POINTER, _LONG]
    library.kernels_read.restype = ctypes.c_uint64
    library.kernels_rms_norm.argtypes = [_POINTER, _POINTER, _LONG, _LONG, _FLOAT, _POINTER]
    return library


def instruction_set() -> str:
    """The instruction set in use: plain, avx2, avx512 or avx512_vnni."""
    return _library().kernels_name().decode()


def use_instruction_set(name: str) -> bool:
    """Uses another instruction set, `best` for the processor's best; False if this build does not have it.

    Nothing checks that the processor has it.
    """
    return _library().kernels_use(name.encode()) == 0


def set_threads(count: int | None) -> int:
    """Sets the number of threads, all processors that this process may use where None is given; the number set."""
    count = count or len(os.sched_getaffinity(0))
    _library().kernels_set_threads(count)
    return count


def quantise(weights: np.ndarray, weight_format: Format) -> np.ndarray:
    """float32 [rows, columns] -> uint8 [rows, row_bytes] in the INT8 or INT4 format of `cpp/formats.h`."""
    weights = _floats(weights)
    rows, columns = weights.shape
    out = np.empty((rows, weight_format.row_bytes(columns)), np.uint8)
    _library().kernels_quantise(weight_format.code, _at(weights), rows, columns, _at(out))
    return out


def linear(
    packed: np.ndarray,
    weight_format: Format,
    x: np.ndarray,
    bias: np.ndarray | None = None,
    residual: np.ndarray | None = None,
) -> np.ndarray:
    """x [tokens, columns] times the transposed weights, packed as uint8 [rows, row_bytes], float32 [tokens, rows]."""
    x = _floats(x)
    rows, columns = packed.shape[0], x.shape[1]
    if packed.dtype != np.uint8 or packed.shape[1] != weight_format.row_bytes(columns):
        raise ValueError(f"weights of {packed.shape} {packed.dtype} do not fit {columns} columns")
    out = np.empty((len(x), rows), np.float32)
    others = [None if array is None else _floats(array) for array in (bias, residual)]
    code, weights = weight_format.code, np.ascontiguousarray(packed)
    _library().kernels_linear(
        code, _at(weights), rows, columns, _at(x), len(x), _at(others[0]), _at(others[1]), _at(out)
    )
    return out


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """x [tokens, width] normalised by its root mean square and scaled."""
    x, weight = _floats(x), _floats(weight)
    out = np.empty_like(x)
    _library().kernels_rms_norm(_at(x), _at(weight), len(x), x.shape[1], eps, _at(out))
    return out


def read_all(array: np.ndarray) -> None:
    """Reads an array from end to end with all threads, as a kernel reads weights: to measure memory bandwidth."""
    _library().kernels_read(_at(array), array.nbytes)


def _floats(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, np.float32)


def _at(array: np.ndarray | None) -> int | None:
    return None if array is None else array.ctypes.data
