"""Read the header of a safetensors file.

Format (github.com/huggingface/safetensors, README): 8 bytes little-endian header length N, N bytes of JSON that map
a tensor's name to `dtype`, `shape` and `data_offsets` [begin, end) relative to the end of the header, then the data.
This module reads the header instead of the safetensors package because numpy has no bfloat16, and because it checks
every offset against the file's size before allocating memory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from inference.checkpoint.tensor import FLOAT8, FLOATS, Segment, StoredTensor, check_tensor
from inference.errors import CheckpointError
from inference.files.fields import Fields
from inference.files.read import check_regular
from inference.files.values import BYTES, TEXT, Reader, list_of

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64", "U8": "uint8"}
QUANTIZED_TYPES = {"I8": "int8", "I32": "int32", "I64": "int64", "F8_E4M3": FLOAT8}
DIMENSIONS = list_of(BYTES, "a list of dimensions")
OFFSETS: Reader[list[int]] = Reader(
    "two offsets in bytes",
    lambda value: DIMENSIONS.takes(value) and len(value) == 2,
    list,
)
# The format's own limit.
MAX_HEADER = 100_000_000


def read_safetensors_header(
    path: Path, accepted: Iterable[str] = tuple(FLOATS), ignored: Callable[[str], bool] = lambda name: False
) -> list[StoredTensor]:
    """Return the tensors listed in a safetensors header, after checking each against the file's size.

    Args:
        accepted: types that the tensors may have.
        ignored: tells whether to skip a tensor by its name, whatever its type.
    """
    header, data_start, file_size = _read_header(path)
    tensors = list(_entries(header, data_start, file_size, path, tuple(accepted), ignored))
    _check_layout(tensors, data_start, file_size, path)
    return [tensor for tensor in tensors if not ignored(tensor.name)]


def _check_layout(tensors: list[StoredTensor], data_start: int, file_size: int, path: Path) -> None:
    """Check that every byte of the data belongs to exactly one tensor; the format allows no holes or overlaps."""
    position = data_start
    for segment in sorted((tensor.segments[0] for tensor in tensors), key=lambda run: (run.offset, run.size)):
        if segment.offset != position:
            raise CheckpointError(f"{path}: tensors overlap or leave holes at byte {position}", "fetch the file again")
        position += segment.size
    if position != file_size:
        raise CheckpointError(f"{path}: {file_size - position} bytes belong to no tensor", "fetch the file again")


def _entries(
    header: dict[str, Any],
    data_start: int,
    file_size: int,
    path: Path,
    accepted: tuple[str, ...],
    ignored: Callable[[str], bool],
) -> Iterator[StoredTensor]:
    names = {**DTYPES, **{theirs: ours for theirs, ours in QUANTIZED_TYPES.items() if ours in accepted}}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, shape, begin, end = _entry(entry, f"{path}: tensor '{name}'")
        dtype = names.get(dtype, dtype)
        if data_start + end > file_size:
            raise CheckpointError(
                f"{path}: truncated, tensor '{name}' ends at byte {data_start + end} of {file_size}",
                "fetch the file again",
            )
        if ignored(name):
            yield StoredTensor(name, dtype, tuple(shape), (Segment(path, data_start + begin, end - begin),))
            continue
        dims = check_tensor(name, dtype, shape, end - begin, path, accepted)
        yield StoredTensor(name, dtype, dims, (Segment(path, data_start + begin, end - begin),))


def _entry(entry: Any, name: str) -> tuple[str, list[int], int, int]:
    """Return the type, the shape and the byte range [begin, end) from a header's entry."""
    fields = Fields(entry if isinstance(entry, dict) else {}, name, CheckpointError)
    dtype, shape = fields.read("dtype", TEXT), fields.read("shape", DIMENSIONS)
    begin, end = fields.read("data_offsets", OFFSETS) or (0, -1)
    if dtype is None or shape is None or begin > end:
        raise CheckpointError(f"{name}: its entry in the header is damaged", "fetch the file again")
    return dtype, shape, begin, end


def _read_header(path: Path) -> tuple[dict[str, Any], int, int]:
    file_size = check_regular(path).st_size
    try:
        with path.open("rb") as file:
            # Turn off read-ahead: a rank may need nothing of what follows the header.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            length = int.from_bytes(file.read(8), "little")
            if file_size < 8 or length > min(MAX_HEADER, file_size - 8):
                raise CheckpointError(
                    f"{path}: truncated or no safetensors file ({file_size} bytes, a header of {length} announced)",
                    "fetch the file again",
                )
            header = json.loads(file.read(length))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the safetensors header is damaged", "fetch the file again") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the safetensors header is damaged", "fetch the file again")
    return header, 8 + length, file_size
