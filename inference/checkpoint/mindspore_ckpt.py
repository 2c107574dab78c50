"""Read the layout of a MindSpore `.ckpt` file.

The file is a protobuf message `Checkpoint { repeated Value value = 1 }`,
`Value { string tag = 1; TensorProto tensor = 2 }`,
`TensorProto { repeated int64 dims = 1; string tensor_type = 2; bytes tensor_content = 3 }` (mindspore's
checkpoint.proto). A tensor over 512 MiB is written as several values with the same tag, each with the whole tensor's
dims and the next run of its bytes. This module walks the file field by field without copying the contents, so that the
tensors can be memory-mapped as from any other file; protobuf's own parser would hold the whole file in memory.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from inference.checkpoint.tensor import ITEM_SIZES, Segment, StoredTensor, check_tensor
from inference.errors import CheckpointError, reason_of
from inference.files.read import check_regular

# Training state that is saved beside the weights.
COUNTERS = ("epoch_num", "step_num", "global_step", "loss_scale", "scale_sense", "current_iterator_step")
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
# Written after the last value if the file has a checksum; no protobuf tag starts with these bytes.
CHECKSUM = b"crc_num"


class _DamagedError(Exception):
    """The bytes are not a protobuf message."""


@dataclass
class _Tensor:
    dims: tuple[int, ...]
    dtype: str
    segments: list[Segment] = field(default_factory=list)


def read_ckpt_header(path: Path, ignored: Callable[[str], bool] = lambda name: False) -> Iterator[StoredTensor]:
    """Yield the tensors of a MindSpore checkpoint, after checking each against the bytes that the file has for it.

    Args:
        ignored: tells whether to skip a tensor by its name, whatever its type.
    """
    tensors: dict[str, _Tensor] = {}
    check_regular(path)
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _walk(data, path, tensors)
    except (_DamagedError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path}: truncated, damaged, encrypted or no MindSpore checkpoint", "fetch the file again"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({reason_of(error)})") from error
    for name, tensor in tensors.items():
        if name in COUNTERS or ignored(name):
            continue
        size = sum(segment.size for segment in tensor.segments)
        dims = check_tensor(name, tensor.dtype, tensor.dims, size, path)
        if any(segment.size % ITEM_SIZES[tensor.dtype] for segment in tensor.segments):
            raise CheckpointError(f"{path}: tensor '{name}' is cut inside a number", "fetch the file again")
        yield StoredTensor(name, tensor.dtype, dims, tuple(tensor.segments))


def _walk(data: mmap.mmap, path: Path, tensors: dict[str, _Tensor]) -> None:
    position, end = 0, len(data)
    if data[max(0, end - 17) : end - 10] == CHECKSUM:
        end -= 17
    while position < end:
        number, start, position = _field(data, position, end)
        if number != 1:
            raise _DamagedError
        _read_value(data, start, position, path, tensors)


def _read_value(data: mmap.mmap, start: int, end: int, path: Path, tensors: dict[str, _Tensor]) -> None:
    name, content, dtype = "", (0, 0), ""
    dims: list[int] = []
    position = start
    while position < end:
        number, at, position = _field(data, position, end)
        if number == 1:
            name = data[at:position].decode("utf-8")
        elif number == 2:
            inner = at
            while inner < position:
                key, value_at, inner = _field(data, inner, position)
                if key == 1:
                    dims.extend(_varints(data, value_at, inner))
                elif key == 2:
                    dtype = data[value_at:inner].decode("utf-8").lower()
                elif key == 3:
                    content = (value_at, inner - value_at)
    tensor = tensors.setdefault(name, _Tensor(tuple(dims), dtype))
    tensor.segments.append(Segment(path, *content))


def _field(data: mmap.mmap, position: int, end: int) -> tuple[int, int, int]:
    """Return the field number, the start of its value and the start of the next field."""
    tag, position = _varint(data, position, end)
    kind = tag & 7
    if kind == BYTES:
        length, position = _varint(data, position, end)
    elif kind == VARINT:
        length = _varint(data, position, end)[1] - position
    elif kind in (FIXED64, FIXED32):
        length = 8 if kind == FIXED64 else 4
    else:
        raise _DamagedError
    if position + length > end:
        raise _DamagedError
    return tag >> 3, position, position + length


def _varint(data: mmap.mmap, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end and shift < 64:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise _DamagedError


def _varints(data: mmap.mmap, start: int, end: int) -> Iterator[int]:
    """Yield a run of varints: `dims` has one number (proto2) or is packed (proto3), and this reads both."""
    while start < end:
        value, start = _varint(data, start, end)
        yield value
