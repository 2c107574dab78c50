"""A tensor of a checkpoint on disk: its type and shape, where its bytes lie, and its bytes on demand.

Bytes are memory-mapped, and used in place or copied once, straight into memory that the caller provides. Knows nothing
about file formats or models.
"""

from __future__ import annotations

import math
import mmap
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from inference.errors import CheckpointError, reason_of

FLOATS = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8, "uint8": 1}
FLOAT8 = "float8_e4m3"
# Types that quantized weights are packed in.
CODES = {"int8": 1, "int32": 4, "int64": 8, FLOAT8: 1}
ITEM_SIZES = {**FLOATS, **CODES}
STORED = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": np.uint16,
    "float64": np.float64,
    "bytes": np.uint8,
    "halves": np.uint16,
    "words": np.uint32,
}
# Element types for copying raw bytes, by element size.
_RAW = {1: "bytes", 2: "halves", 4: "words"}
# Elements converted at a time, so that a conversion's working memory stays in the cache.
CHUNK = 1 << 20
# Most bytes to request in one posix_fadvise call.
FETCHED_AT_ONCE = 1 << 17
# madvise(2), Linux 5.14: reads and maps the pages now, so that the first step does not have to.
POPULATE_READ = 22


@dataclass(frozen=True)
class Segment:
    """A contiguous run of a tensor's bytes in a file."""

    path: Path
    offset: int
    size: int


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint: type, shape, and where its bytes lie (several runs in a MindSpore .ckpt).

    Args:
        window: for a tensor that is some columns of a stored one: the first column, the last + 1, and the number
            stored. The segments then cover whole rows.
        is_part: the bytes around it in the file are not needed, so the system should not read ahead.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    segments: tuple[Segment, ...]
    window: tuple[int, int, int] | None = None
    is_part: bool = False

    @property
    def num_bytes(self) -> int:
        """Number of bytes of its elements."""
        return math.prod(self.shape) * ITEM_SIZES[self.dtype]

    @property
    def stored_bytes(self) -> int:
        """Bytes that hold the tensor, as the files' headers say."""
        return sum(segment.size for segment in self.segments)

    def read_into(self, out: np.ndarray) -> None:
        """Copies the tensor into `out`, a C-contiguous float32 array with as many elements, converting as it goes."""
        flat = out.reshape(-1)
        if self.window is not None:
            _copy_columns(self.segments, self.dtype, self.window, flat.reshape(self.shape))
            return
        position = 0
        for segment in self.segments:
            count = segment.size // ITEM_SIZES[self.dtype]
            _copy(segment, self.dtype, flat[position : position + count], self.is_part)
            position += count

    def read_bytes_into(self, out: np.ndarray) -> None:
        """Copies the tensor's bytes unchanged into `out`, a C-contiguous uint8 array of the same size."""
        flat = out.reshape(-1)
        if self.window is not None:
            kind = _RAW[ITEM_SIZES[self.dtype]]
            _copy_columns(self.segments, kind, self.window, flat.view(STORED[kind]).reshape(self.shape))
            return
        position = 0
        for segment in self.segments:
            _copy(segment, "bytes", flat[position : position + segment.size], self.is_part)
            position += segment.size

    def rows(self, begin: int, end: int) -> StoredTensor:
        """Returns rows [begin, end) as a tensor; the bytes of the other rows are never read."""
        columns = math.prod(self.shape[1:]) if self.window is None else self.window[2]
        row_bytes = columns * ITEM_SIZES[self.dtype]
        start, stop, at, segments = begin * row_bytes, end * row_bytes, 0, []
        for segment in self.segments:
            first, last = max(start - at, 0), min(stop - at, segment.size)
            if first < last:
                segments.append(Segment(segment.path, segment.offset + first, last - first))
            at += segment.size
        return StoredTensor(
            self.name, self.dtype, (end - begin, *self.shape[1:]), tuple(segments), self.window, self.is_part
        )

    def columns(self, begin: int, end: int) -> StoredTensor:
        """Returns columns [begin, end) as a tensor; other columns are read only if they share a page with these."""
        first, _, stored = self.window or (0, 0, self.shape[1])
        window = (first + begin, first + end, stored)
        return replace(self, shape=(self.shape[0], end - begin), window=window)

    @property
    def can_be_mapped(self) -> bool:
        """Whether its bytes lie in one contiguous run."""
        return self.window is None and len(self.segments) == 1

    def map(self) -> np.ndarray:
        """Maps the tensor's bytes as a read-only uint8 array of its shape, for a uint8 tensor in one contiguous run.

        The pages belong to the operating system's file cache: every process that maps the file shares them.
        """
        (segment,) = self.segments
        if self.is_part:
            _fetch(segment.path, [(segment.offset, segment.size)])
        array = _mapped(segment, "bytes", math.prod(self.shape), POPULATE_READ)
        return array.reshape(self.shape)


Checkpoint = dict[str, StoredTensor]


def check_tensor(
    name: str, dtype: str, shape: Iterable[int], size: int, path: Path, accepted: Iterable[str] = tuple(FLOATS)
) -> tuple[int, ...]:
    """Returns the shape, after checking that the type is accepted and that the shape needs `size` bytes."""
    dims = tuple(shape)
    if dtype not in accepted:
        # An older GPTQ checkpoint may have its quantization config in another file.
        is_quantized = re.fullmatch(r"I\d+|F8_E4M3", dtype)
        hint = f", and {dtype} with a quantization_config in config.json" if is_quantized else ""
        raise CheckpointError(f"{path}: tensor '{name}' is of type {dtype}", f"accepted: {', '.join(accepted)}{hint}")
    if any(isinstance(dim, bool) or not isinstance(dim, int) or dim < 0 for dim in dims):
        raise CheckpointError(f"{path}: tensor '{name}' has the impossible shape {list(dims)}")
    if math.prod(dims) * ITEM_SIZES[dtype] != size:
        needed = math.prod(dims) * ITEM_SIZES[dtype]
        raise CheckpointError(
            f"{path}: tensor '{name}' of shape {list(dims)} needs {needed} bytes, the file has {size}"
        )
    return dims


def _mapped(segment: Segment, dtype: str, count: int, advice: int | None = None) -> np.ndarray:
    """Maps a run of a file as a read-only view, which stays mapped as long as the view lives.

    Args:
        advice: for madvise(2), how the run will be read.
    """
    page = segment.offset % mmap.ALLOCATIONGRANULARITY
    start, length = segment.offset - page, page + segment.size
    try:
        with segment.path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ, offset=start)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{segment.path} cannot be read, or was changed while it was ({reason_of(error)})"
        ) from error
    if advice is not None:
        # An older kernel may not know this advice; it then reads the pages on first use.
        with suppress(OSError):
            mapped.madvise(advice)
    return np.frombuffer(mapped, dtype=STORED[dtype], count=count, offset=page)


def _copy(segment: Segment, dtype: str, out: np.ndarray, is_part: bool = False) -> None:
    if not out.size:
        return
    if is_part:
        _fetch(segment.path, [(segment.offset, segment.size)])
    # Map only during the copy: pages that stay mapped count as this process's memory.
    source = _mapped(segment, dtype, out.size, mmap.MADV_RANDOM if is_part else None)
    for start in range(0, out.size, CHUNK):
        _convert(source[start : start + CHUNK], dtype, out[start : start + CHUNK])


def _fetch(path: Path, runs: Iterable[tuple[int, int]]) -> None:
    """Asks the system to read only these runs of a file, (offset, size) in bytes, all at once."""
    with path.open("rb") as file:
        for first, size in runs:
            # The system reads no more than this per call.
            for start in range(first, first + size, FETCHED_AT_ONCE):
                count = min(FETCHED_AT_ONCE, first + size - start)
                os.posix_fadvise(file.fileno(), start, count, os.POSIX_FADV_WILLNEED)


def _convert(part: np.ndarray, dtype: str, out: np.ndarray) -> None:
    if dtype == "bfloat16":
        # A bfloat16 is the upper half of a float32.
        np.left_shift(part, 16, out=out.view(np.uint32), dtype=np.uint32, casting="unsafe")
    else:
        np.copyto(out, part, casting="same_kind")


def _copy_columns(segments: Iterable[Segment], dtype: str, window: tuple[int, int, int], out: np.ndarray) -> None:
    """Copies the columns of a window into `out` [rows, columns]; a segment may end in the middle of a row."""
    begin, end, stored = window
    item = np.dtype(STORED[dtype]).itemsize
    # If rows are short, the gaps between the wanted columns lie on the same pages as the columns.
    leaves_gaps = (stored - end + begin) * item > 2 * mmap.PAGESIZE
    at = 0  # element index in the whole rows
    for segment in segments:
        count = segment.size // item
        source = _mapped(segment, dtype, count, mmap.MADV_RANDOM)
        position = 0
        while position < count:
            row, column = divmod(at + position, stored)
            if column == 0 and count - position >= stored:
                rows = min(count - position, max(stored, CHUNK)) // stored
                part = source[position : position + rows * stored].reshape(rows, stored)
                at_row, size = segment.offset + position * item, stored * item
                wanted = ((at_row + row * size + begin * item, (end - begin) * item) for row in range(rows))
                _fetch(segment.path, wanted if leaves_gaps else [(at_row, rows * size)])
                _convert(part[:, begin:end], dtype, out[row : row + rows])
                position += rows * stored
                continue
            # The end of a row that began in the previous segment, or the start of one that ends in the next.
            length = min(stored - column, count - position)
            first, last = max(begin, column), min(end, column + length)
            if first < last:
                part = source[position + first - column : position + last - column]
                _convert(part, dtype, out[row, first - begin : last - begin])
            position += length
        at += count
