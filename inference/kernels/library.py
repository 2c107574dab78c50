"""The built kernels as Python functions on numpy arrays, for loading weights and for the tests.

Every function checks shapes and types before a pointer leaves Python.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from functools import cache
from typing import TypeVar

import numpy as np

from inference.errors import ConfigError
from inference.kernels.build import library_path
from inference.kernels.formats import Format, check_room
from inference.kernels.records import Record, RecordError, check_layout

_POINTER, _LONG, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_float


# More threads than this are a mistake, and starting them all would take the machine's memory.
MOST_THREADS = 1024
# The instruction set in use; None for the best that this processor has.
_chosen: str | None = None


def _library() -> ctypes.CDLL:
    return _load(_chosen)


@cache
def _load(name: str | None) -> ctypes.CDLL:
    library = ctypes.CDLL(str(library_path(name)))
    library.kernels_name.restype = ctypes.c_char_p
    library.kernels_use.argtypes = [ctypes.c_char_p]
    library.kernels_set_threads.argtypes = [_INT]
    library.kernels_pack.argtypes = [_INT, _POINTER, _INT, _LONG, _LONG, _LONG, _POINTER]
    library.kernels_linear.argtypes = [_INT, _POINTER, _LONG, _LONG, _POINTER, _LONG, *[_POINTER] * 3]
    library.kernels_read.argtypes = [_POINTER, _LONG]
    library.kernels_read.restype = ctypes.c_uint64
    library.kernels_sublayers.argtypes = [_POINTER, *[_LONG] * 4, *[_POINTER] * 5]
    library.kernels_group.argtypes = [_INT, _INT, _POINTER, _POINTER, _INT]
    library.kernels_group.restype = _POINTER
    library.kernels_group_bytes.argtypes = [_INT]
    library.kernels_group_bytes.restype = _LONG
    library.kernels_group_sum.argtypes = [_POINTER, _POINTER, _LONG]
    library.kernels_group_figures.argtypes = [_POINTER, _POINTER]
    library.kernels_rms_norm.argtypes = [_POINTER, _POINTER, _LONG, _LONG, _FLOAT, _POINTER]
    library.kernels_records.restype = ctypes.c_char_p
    library.kernels_problem.argtypes = [_POINTER, _LONG]
    library.kernels_problem.restype = ctypes.c_char_p
    check_layout(library.kernels_records().decode())
    return library


def instruction_set() -> str:
    """Return the name of the instruction set in use, as `build.SETS` has it."""
    return _library().kernels_name().decode()


def use_instruction_set(name: str | None) -> None:
    """Use the library of another instruction set, built first if need be; None for the best.

    For tests of this module's functions: operators in graphs keep the best.

    Raises:
        KernelBuildError: it cannot be built.
    """
    global _chosen
    _chosen = name


def set_threads(count: int | None) -> int:
    """Set the number of threads, None for one on each processor that this process may use; return the number set.

    Raises:
        ConfigError: the machine does not start so many.
    """
    processors = len(os.sched_getaffinity(0))
    count = count or processors
    if count > MOST_THREADS or _library().kernels_set_threads(count):
        advice = f"give at most {processors}, the processors that this process may use"
        raise ConfigError(f"engine.threads is {count}, which this machine does not start", advice)
    return count


def pack_into(values: np.ndarray, weight_format: Format, panels: np.ndarray, first_row: int = 0) -> None:
    """`formats.pack_into`, by all threads."""
    values = np.ascontiguousarray(values)
    rows, columns = values.shape
    is_packed = values.dtype == np.uint16
    if values.dtype != np.float32 and not (is_packed and weight_format.item_size == 2):
        raise ValueError(f"values of {values.dtype} do not go into {weight_format.value}")
    check_room(panels, weight_format, first_row + rows, columns)
    _library().kernels_pack(weight_format.code, _at(values), is_packed, rows, columns, first_row, _at(panels))


def linear(
    panels: np.ndarray,
    weight_format: Format,
    rows: int,
    x: np.ndarray,
    bias: np.ndarray | None = None,
    residual: np.ndarray | None = None,
) -> np.ndarray:
    """x [tokens, columns] times the transposed weights [rows, columns], packed; float32 [tokens, rows]."""
    x = _floats(x)
    check_room(panels, weight_format, rows, x.shape[1])
    out = np.empty((len(x), rows), np.float32)
    others = [None if array is None else _floats(array) for array in (bias, residual)]
    code = weight_format.code
    _library().kernels_linear(
        code, _at(panels), rows, x.shape[1], _at(x), len(x), _at(others[0]), _at(others[1]), _at(out)
    )
    return out


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """x [tokens, width] normalized by its root mean square and scaled."""
    x, weight = _floats(x), _floats(weight)
    out = np.empty_like(x)
    _library().kernels_rms_norm(_at(x), _at(weight), len(x), x.shape[1], eps, _at(out))
    return out


_AnyRecord = TypeVar("_AnyRecord", bound=Record)


def sound(record: _AnyRecord) -> _AnyRecord:
    """Return a record that the kernels can read.

    Raises:
        RecordError: a number in it is out of its range, or an address is missing.
    """
    numbers = record.numbers()
    problem = _library().kernels_problem(_at(numbers), len(numbers))
    if problem:
        raise RecordError(f"{type(record).__name__}: {problem.decode()} cannot be what the model gives")
    return record


def sublayer(record: Record, x: np.ndarray) -> np.ndarray:
    """x [tokens, hidden] through a sublayer that has no cache, whose record `native` has made."""
    out = np.array(x, np.float32, order="C")
    program = sound(record).numbers()
    code = _library().kernels_sublayers(_at(program), len(program), len(out), 0, 0, None, None, None, None, _at(out))
    assert code == 0
    return out


def read_all(array: np.ndarray) -> None:
    """Reads an array from end to end with all threads, as a kernel reads weights: to measure memory bandwidth."""
    _library().kernels_read(_at(array), array.nbytes)


class RankGroup:
    """The ranks that share a model, for the native kernels (`cpp/group.h`).

    Args:
        memory: shared by all ranks and zero at first, `group_bytes` long; None for `connections`.
        connections: file descriptors of a leader's sockets to its followers in their order, or of a follower's to its
            leader.
    """

    def __init__(self, rank: int, size: int, memory: np.ndarray | None, connections: Sequence[int] = ()):
        self._kept = memory
        numbers = np.array(connections, np.int32)
        self.handle: int = _library().kernels_group(rank, size, _at(memory), _at(numbers), len(numbers))

    def sum(self, x: np.ndarray) -> None:
        """x, float32, becomes the sum over all ranks, each of which calls this with as many numbers.

        Raises:
            ConnectionError: a rank is gone.
        """
        assert x.dtype == np.float32 and x.flags.c_contiguous
        if _library().kernels_group_sum(self.handle, _at(x), x.size):
            raise ConnectionError("a rank of the group is gone")

    def figures(self) -> tuple[int, float]:
        """How many sums there have been, and the seconds that they took, waiting included."""
        figures = np.zeros(2, np.int64)
        _library().kernels_group_figures(self.handle, _at(figures))
        return int(figures[0]), figures[1] / 1e9


def group_bytes(size: int) -> int:
    """Bytes of memory that a group of `size` ranks shares."""
    return int(_library().kernels_group_bytes(size))


def _floats(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, np.float32)


def _at(array: np.ndarray | None) -> int | None:
    return None if array is None else array.ctypes.data
