"""GGUF files: sizes and weights.

Source for the blocks: ggml-common.h (github.com/ggml-org/ggml). A block is 32 values of a row with a float16 scale d
before them:

Q8_0  int8 q: the value is q * d, as in our int8.
Q4_0  16 bytes, value i in the low half of byte i, value i + 16 in the high one: (q - 8) * d, as in our int4.

Other quantized types are dequantized by the package `gguf`. What the tensors are: `gguf_architectures`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from inference.checkpoint.gguf_header import GgufTensor, open_gguf
from inference.checkpoint.gguf_names import (
    FACTORS,
    LONG_FACTORS,
    SHORT_FACTORS,
    Architecture,
    architecture_of,
    config_of,
    expert_names,
    our_name,
)
from inference.checkpoint.quantized_tensor import Codes, QuantizedTensor, narrowest_form
from inference.checkpoint.tensor import Checkpoint, Segment, StoredTensor
from inference.errors import CheckpointError
from inference.kernels.formats import GROUP

PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
# Bytes of a block of 32 values.
BLOCKS = {"Q8_0": 34, "Q4_0": 18}


def read_gguf_config(path: Path) -> dict[str, Any]:
    """A file's sizes under the keys of Hugging Face's config.json.

    Raises:
        CheckpointError: a damaged file, or an architecture that is not read.
    """
    return config_of(open_gguf(path))


def read_gguf_tensors(path: Path) -> Checkpoint:
    """The tensors of a file, under the names that its family has elsewhere.

    Raises:
        CheckpointError: a damaged file, or a type that nobody can dequantize.
    """
    file = open_gguf(path)
    _, architecture = architecture_of(file)
    wanted = [stored for stored in file.tensors if stored.name not in (FACTORS, SHORT_FACTORS, LONG_FACTORS)]
    return {tensor.name: tensor for stored in wanted for tensor in _tensors(stored, architecture)}


def _tensors(stored: GgufTensor, architecture: Architecture) -> Iterator[StoredTensor]:
    """It, or the experts that it is made of."""
    names = expert_names(stored.name)
    if names is None:
        tensor = _tensor(stored, our_name(stored.name, architecture), stored.shape)
        # The gate of a shared expert, a vector here.
        yield replace(tensor, shape=(1, *tensor.shape)) if tensor.name.endswith("shared_expert_gate.weight") else tensor
        return
    if len(stored.shape) != 3:
        raise CheckpointError(
            f"{stored.path}: tensor '{stored.name}' is {list(stored.shape)}", "it must be a matrix an expert"
        )
    count, rows, columns = stored.shape
    together = _tensor(stored, stored.name, (count * rows, columns))
    for index in range(count):
        yield replace(together.rows(index * rows, (index + 1) * rows), name=names.format(index))


def _tensor(stored: GgufTensor, name: str, shape: tuple[int, ...]) -> StoredTensor:
    kind, path = stored.kind_name, stored.path
    segments = (Segment(path, stored.offset, stored.size),)
    if kind in PLAIN:
        return StoredTensor(name, PLAIN[kind], shape, segments)
    if len(shape) != 2:
        raise CheckpointError(f"{path}: tensor '{stored.name}' of type {kind} is {list(shape)}", "it must be a matrix")
    data = StoredTensor(name, "uint8", (shape[0], stored.size // max(shape[0], 1)), segments)
    if kind not in BLOCKS:
        source = _OtherBlocks(data, stored.kind)
        return _quantized(name, shape, segments, source, None, kind)
    blocks = _Blocks(data, kind, shape[1])
    lowest, highest = (-8, 7) if kind == "Q4_0" else (-128, 127)
    form = narrowest_form(lowest, highest, blocks.groups, np.zeros((0, 0), np.float32))
    return _quantized(name, shape, segments, blocks, form, kind)


def _quantized(
    name: str, shape: tuple[int, ...], segments: tuple[Segment, ...], source: Any, form: Any, kind: str
) -> QuantizedTensor:
    scheme = f"GGUF {kind}"
    return QuantizedTensor(
        name=name, dtype="float32", shape=shape, segments=segments, source=source, form=form, scheme=scheme
    )


def _raw(data: StoredTensor, begin: int, end: int) -> np.ndarray:
    raw = np.empty((end - begin, data.shape[1]), np.uint8)
    data.rows(begin, end).read_bytes_into(raw)
    return raw


@dataclass(frozen=True)
class _Blocks:
    """Rows of Q8_0 or Q4_0; `data` is their bytes [rows, bytes of a row]."""

    data: StoredTensor
    kind: str
    columns: int

    @property
    def groups(self) -> np.ndarray:
        return np.arange(self.columns) // GROUP

    def values(self, begin: int, end: int) -> np.ndarray:
        return self.codes(begin, end).values()

    def codes(self, begin: int, end: int) -> Codes:
        blocks = _raw(self.data, begin, end).reshape(end - begin, -1, BLOCKS[self.kind])
        scales = np.ascontiguousarray(blocks[:, :, :2]).view(np.float16)[:, :, 0].astype(np.float32)
        q = blocks[:, :, 2:]
        if self.kind == "Q4_0":
            q = np.concatenate([q & 15, q >> 4], axis=2).astype(np.int16) - 8
        else:
            q = np.ascontiguousarray(q).view(np.int8).astype(np.int16)
        return Codes(q.reshape(end - begin, -1), scales, self.groups)


@dataclass(frozen=True)
class _OtherBlocks:
    """Rows of a type that the package dequantizes; `data` is their bytes."""

    data: StoredTensor
    kind: int

    def values(self, begin: int, end: int) -> np.ndarray:
        import gguf

        kind = gguf.GGMLQuantizationType(self.kind)
        try:
            return np.asarray(gguf.dequantize(_raw(self.data, begin, end), kind), np.float32)
        except NotImplementedError:
            raise CheckpointError(f"the package gguf cannot dequantize {kind.name}", "give another file") from None
