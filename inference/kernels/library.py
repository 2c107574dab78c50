"""The built kernels as Python functions on numpy arrays, for weight loading and tests.

Every function checks shapes and types before it passes a pointer to the library.
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


# A larger thread count is a mistake, and starting that many would exhaust the machine's memory.
MOST_THREADS = 1024
# The instruction set in use; None for the best that this processor supports.
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
    """Return the name of the instruction set in use, as in `build.SETS`."""
    return _library().kernels_name().decode()


def use_instruction_set(name: str | None) -> None:
    """Switch to another instruction set's library, building it first if necessary; None for the best.

    For tests of this module's functions: operators in graphs always use the best.

    Raises:
        KernelBuildError: it cannot be built.
    """
    global _chosen
    _chosen = name


def set_threads(count: int | None) -> int:
    """Set the number of threads and return it; None for one per processor that this process may use.

    Raises:
        ConfigError: the machine cannot start that many threads.
    """
    processors = len(os.sched_getaffinity(0))
    count = count or processors
    if count > MOST_THREADS or _library().kernels_set_threads(count):
        advice = f"give at most {processors}, the processors that this process may use"
        raise ConfigError(f"engine.threads is {count}, which this machine does not start", advice)
    return count


def pack_into(values: np.ndarray, weight_format: Format, panels: np.ndarray, first_row: int = 0) -> None:
    """Run `formats.pack_into` on all threads."""
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
    """Multiply x [tokens, columns] by the transposed packed weights [rows, columns]; float32 [tokens, rows]."""
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
    """Apply RMSNorm to x [tokens, width]."""
    x, weight = _floats(x), _floats(weight)
    out = np.empty_like(x)
    _library().kernels_rms_norm(_at(x), _at(weight), len(x), x.shape[1], eps, _at(out))
    return out


_AnyRecord = TypeVar("_AnyRecord", bound=Record)


def sound(record: _AnyRecord) -> _AnyRecord:
    """Check a record and return it.

    Raises:
        RecordError: a number is out of range, or an address is missing.
    """
    numbers = record.numbers()
    problem = _library().kernels_problem(_at(numbers), len(numbers))
    if problem:
        raise RecordError(f"{type(record).__name__}: {problem.decode()} cannot be what the model gives")
    return record


def sublayer(record: Record, x: np.ndarray, table: np.ndarray | None = None, position: int = 0) -> np.ndarray:
    """Run x [tokens, hidden] through a sublayer, given its record from `native`.

    A sublayer with a cache needs the block table of the one sequence whose tokens from `position` on are x.
    """
    out = np.array(x, np.float32, order="C")
    program, sizes = sound(record).numbers(), (0, 0)
    step: list[np.ndarray | None] = [None] * 4
    if table is not None:
        positions = np.arange(position, position + len(out))
        block_size = record.block_size
        slots = table[positions // block_size] * block_size + positions % block_size
        step = [np.ascontiguousarray(a, np.int32) for a in (positions, slots, table, [0, len(out)])]
        sizes = (1, len(table))
    code = _library().kernels_sublayers(
        _at(program), len(program), len(out), *sizes, *(_at(array) for array in step), _at(out)
    )
    assert code == 0
    return out


def read_all(array: np.ndarray) -> None:
    """Read an array once with all threads, as a kernel reads weights, to measure memory bandwidth."""
    _library().kernels_read(_at(array), array.nbytes)


class RankGroup:
    """The ranks that share a model, for the native kernels (`cpp/group.h`).

    Args:
        memory: `group_bytes` bytes shared by all ranks, initially zero; None to use `connections`.
        connections: file descriptors of a leader's sockets to its followers in rank order, or of a follower's socket
            to its leader.
    """

    def __init__(self, rank: int, size: int, memory: np.ndarray | None, connections: Sequence[int] = ()):
        self._kept = memory
        numbers = np.array(connections, np.int32)
        self.handle: int = _library().kernels_group(rank, size, _at(memory), _at(numbers), len(numbers))

    def sum(self, x: np.ndarray) -> None:
        """Sum float32 x over all ranks, in place. Every rank must call this with the same number of elements.

        Raises:
            ConnectionError: a rank has disconnected.
        """
        assert x.dtype == np.float32 and x.flags.c_contiguous
        if _library().kernels_group_sum(self.handle, _at(x), x.size):
            raise ConnectionError("a rank of the group is gone")

    def figures(self) -> tuple[int, float]:
        """Return the number of sums so far and the seconds that they took, including waiting."""
        figures = np.zeros(2, np.int64)
        _library().kernels_group_figures(self.handle, _at(figures))
        return int(figures[0]), figures[1] / 1e9


def group_bytes(size: int) -> int:
    """Return the bytes of shared memory that a group of `size` ranks needs."""
    return int(_library().kernels_group_bytes(size))


def _floats(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, np.float32)


def _at(array: np.ndarray | None) -> int | None:
    return None if array is None else array.ctypes.data
