"""Read the header of a GGUF file or of its parts: fields by name, and where each tensor lies.

Format (github.com/ggml-org/ggml, docs/gguf.md), all little-endian: the magic `GGUF`, version 2 or 3, the number of
tensors and of fields, the fields (name, type, value), then for each tensor its name, dimensions (columns first), type
and offset into the data. The data begins at the next multiple of `general.alignment`. This module parses the header
itself because the package `gguf` takes seconds on the tokens of a large vocabulary. It uses the package only for
tensor types that it does not know.

A split model (llama.cpp's gguf-split) has parts named NAME-00001-of-00003.gguf and so on. Each part is a GGUF file with
some of the tensors and the fields `split.no` and `split.count`; the first part has all other fields.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from inference.errors import CheckpointError
from inference.files.read import check_regular, is_file
from inference.files.values import Reader, integer

MAGIC, VERSIONS, ALIGNMENT = b"GGUF", (2, 3), 32
# numpy's name for each field type number.
NUMBERS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
TEXT, ARRAY = 8, 9
# For each tensor type number: its name, values per block and bytes per block.
BLOCKS = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    8: ("Q8_0", 32, 34),
    28: ("F64", 1, 8),
    30: ("BF16", 1, 2),
}
ALIGNMENTS = integer(1, 1 << 20)
# Number of parts of a split model; file names have five digits for it.
PARTS = integer(0, 99999)
# Most dimensions of a tensor: ggml's own limit.
MAX_DIMENSIONS = 4
T = TypeVar("T")
HINT = "fetch the file again"
_PART = re.compile(r"(.*-)(\d{5})(-of-)(\d{5})(\.gguf)")


@dataclass(frozen=True)
class GgufTensor:
    """A tensor: its file, its type as a number and a name, its shape (rows first) and the bytes it has in the file."""

    path: Path
    name: str
    kind: int
    kind_name: str
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclass(frozen=True)
class GgufFile:
    """The fields and tensors of a file."""

    path: Path
    fields: dict[str, Any]
    tensors: tuple[GgufTensor, ...]

    def get(self, name: str, default: Any = None) -> Any:
        """Return a field's value (a list for an array), or the default if the file has no such field."""
        return self.fields.get(name, default)

    def read(self, name: str, reader: Reader[T], default: T) -> T:
        """Return a field's value as the reader converts it, or the default if the file has no such field.

        Raises:
            CheckpointError: the reader does not accept the value.
        """
        value = self.fields.get(name)
        return default if value is None else reader.read(value, f"{self.path}: '{name}'", CheckpointError)

    def tensor(self, name: str) -> GgufTensor | None:
        """Return the tensor with this name, or None if there is none."""
        return next((tensor for tensor in self.tensors if tensor.name == name), None)


def open_gguf(path: Path) -> GgufFile:
    """Return the header of a file, or of the split model it belongs to; cached until the files change.

    Raises:
        CheckpointError: the file is damaged, or a part is missing.
    """
    file = _header(path)
    count = file.read("split.count", PARTS, 1)
    if count < 2:
        return file
    named = _PART.fullmatch(path.name)
    if named is None or int(named[4]) != count:
        raise CheckpointError(
            f"{path} is one of {count} parts, and not named so", f"call it NAME-00001-of-{count:05}.gguf, as it was"
        )
    paths = [path.with_name(f"{named[1]}{number:05}{''.join(named.groups()[2:])}") for number in range(1, count + 1)]
    missing = [part.name for part in paths if not is_file(part)]
    if missing:
        raise CheckpointError(
            f"{path}: {len(missing)} of its {count} parts are missing ({', '.join(missing[:5])})", HINT
        )
    parts = [_header(part) for part in paths]
    if [part.get("split.no") for part in parts] != list(range(count)):
        raise CheckpointError(f"{path}: the parts are not those of one model, by split.no", HINT)
    return replace(parts[0], tensors=tuple(tensor for part in parts for tensor in part.tensors))


def _header(path: Path) -> GgufFile:
    state = check_regular(path)
    return _opened(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=64)
def _opened(path: Path, changed: int, size: int) -> GgufFile:
    try:
        with path.open("rb") as file:
            reader = _Reader(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        magic, version = reader.take(4), reader.number(4)
        if magic != MAGIC or version not in VERSIONS:
            raise CheckpointError(f"{path} is not a GGUF file of version 2 or 3", "give another file")
        tensors, count = reader.number(10), reader.number(10)
        fields = dict(reader.field() for _ in range(count))
        infos = [reader.info() for _ in range(tensors)]
        alignment = ALIGNMENTS.read(
            fields.get("general.alignment", ALIGNMENT), f"{path}: 'general.alignment'", CheckpointError
        )
        start = -(-reader.at // alignment) * alignment
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, OverflowError, ZeroDivisionError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged or no GGUF file ({error})", HINT) from error
    found = tuple(_tensor(path, size, start, *info) for info in infos)
    return GgufFile(path, fields, found)


def _tensor(path: Path, size: int, start: int, name: str, shape: tuple[int, ...], kind: int, offset: int) -> GgufTensor:
    kind_name, values, item = BLOCKS.get(kind) or _of_package(path, name, kind)
    if not shape or shape[-1] % values or 0 in shape:
        raise CheckpointError(f"{path}: tensor '{name}' of type {kind_name} is {list(shape)}", HINT)
    needed = math.prod(shape) // values * item
    if start + offset + needed > size:
        raise CheckpointError(
            f"{path}: truncated, tensor '{name}' ends at byte {start + offset + needed} of {size}", HINT
        )
    return GgufTensor(path, name, kind, kind_name, shape, start + offset, needed)


def _of_package(path: Path, name: str, kind: int) -> tuple[str, int, int]:
    try:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    except ImportError:
        raise CheckpointError(
            f"{path}: tensor '{name}' is in blocks that need the package gguf, which is not installed",
            "pip install gguf",
        ) from None
    try:
        found = GGMLQuantizationType(kind)
        values, item = GGML_QUANT_SIZES[found]
    except (ValueError, KeyError):
        raise CheckpointError(
            f"{path}: tensor '{name}' is of the unknown type {kind}", "a newer gguf may know it"
        ) from None
    return found.name, values, item


class _Reader:
    """Reads values from a file's bytes, one after another.

    Raises:
        ValueError, KeyError: the bytes end early, or have an unknown type.
    """

    def __init__(self, data: mmap.mmap):
        self.data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        if self.at + count > len(self.data):
            raise ValueError(f"it ends at byte {len(self.data)}")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, kind: int) -> Any:
        return self.numbers(kind, 1)[0]

    def numbers(self, kind: int, count: int) -> list[Any]:
        dtype = np.dtype(NUMBERS[kind])
        values = np.frombuffer(self.take(count * dtype.itemsize), dtype)
        if dtype.kind == "f" and dtype.itemsize == 4 and count == 1:
            # Take the shortest decimal that rounds to this float32: it is the number the writer meant.
            return [float(str(values[0]))]
        return list(values.tolist())

    def text(self) -> str:
        return self.take(_LENGTH.unpack(self.take(8))[0]).decode()

    def value(self, kind: int) -> Any:
        if kind == TEXT:
            return self.text()
        if kind != ARRAY:
            return self.number(kind)
        inner, count = self.number(4), self.number(10)
        if inner in NUMBERS:
            return self.numbers(inner, count)
        return [self.value(inner) for _ in range(count)]

    def field(self) -> tuple[str, Any]:
        return self.text(), self.value(self.number(4))

    def info(self) -> tuple[str, tuple[int, ...], int, int]:
        """Read the name, shape, type and offset of a tensor."""
        name, dimensions = self.text(), self.number(4)
        if dimensions > MAX_DIMENSIONS:
            raise ValueError(f"tensor '{name[:80]}' has {dimensions} dimensions")
        shape = tuple(reversed(self.numbers(10, dimensions)))
        return name, shape, self.number(4), self.number(10)


_LENGTH = struct.Struct("<Q")
