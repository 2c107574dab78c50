"""Read the sizes and weights of GGUF files.

Source for the blocks: ggml-common.h (github.com/ggml-org/ggml). A block holds a float16 scale d, then 32 values of a
row:

Q8_0  int8 q: the value is q * d, as in our int8.
Q4_0  16 bytes, with value i in the low half of byte i and value i + 16 in the high half: (q - 8) * d, as in our int4.
Q4_1  the same with a float16 minimum m after d: q * d + m, as in our int4_min.
Q5_0, Q5_1  the same with the fifth bits of all values in 4 bytes before the others: (q - 16) * d, q * d + m.

Q4_K and Q5_K have eight groups of 32 values in a block: d and dmin as float16, then 12 bytes of scales s and minimums
m, 6 bits each: q * d * s - dmin * m. Two groups of Q4_K share 32 bytes, the first in the low halves. Q5_K stores the
fifth bits before them: those of group g are bit g of 32 bytes.

The package `gguf` dequantizes the other quantized types. `gguf_names` maps the tensors' names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from inference.checkpoint.gguf_header import GgufFile, GgufTensor, open_gguf
from inference.checkpoint.gguf_latent import KEYS, VALUES, join_latents
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
from inference.checkpoint.quantized_tensor import Codes, CodeSource, QuantizedTensor
from inference.checkpoint.tensor import Checkpoint, Segment, StoredTensor
from inference.errors import CheckpointError
from inference.files.values import integer
from inference.kernels.formats import GROUP, Format

PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
# Bytes of a block of 32 values.
BLOCKS = {"Q8_0": 34, "Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q5_1": 24}
# Bytes of a block of 256 values.
SUPER_BLOCKS = {"Q4_K": 144, "Q5_K": 176}
HEADS = integer(1, 1 << 16)
FORMS = {
    **{"Q8_0": Format.INT8, "Q4_0": Format.INT4, "Q4_1": Format.INT4_MIN, "Q4_K": Format.INT4_MIN},
    **{"Q5_0": Format.INT8, "Q5_1": Format.INT8_MIN, "Q5_K": Format.INT8_MIN},
}


def read_gguf_config(path: Path) -> dict[str, Any]:
    """Return a file's sizes under the keys of Hugging Face's config.json.

    Raises:
        CheckpointError: the file is damaged, or its architecture is not supported.
    """
    return config_of(open_gguf(path))


def read_gguf_tensors(path: Path) -> Checkpoint:
    """Return the tensors of a file, under the names that other checkpoints of its family use.

    Raises:
        CheckpointError: the file is damaged, or has a type that cannot be dequantized.
    """
    file = open_gguf(path)
    name, architecture = architecture_of(file)
    wanted = [stored for stored in file.tensors if stored.name not in (FACTORS, SHORT_FACTORS, LONG_FACTORS)]
    tensors = {tensor.name: tensor for stored in wanted for tensor in _tensors(stored, architecture, file)}
    heads = file.read(f"{name}.attention.head_count", HEADS, 1)
    return join_latents(tensors, heads)


def _tensors(stored: GgufTensor, architecture: Architecture, file: GgufFile) -> Iterator[StoredTensor]:
    """Yield the tensor, or one tensor for each expert if it holds all experts of a layer."""
    names = expert_names(stored.name)
    if names is None:
        name, shape = our_name(stored.name, architecture, file), stored.shape
        if name.endswith((KEYS, VALUES)) and len(shape) == 3:
            shape = (shape[0] * shape[1], shape[2])
        tensor = _tensor(stored, name, shape)
        # GGUF stores the gate of a shared expert as a vector; make it a matrix of one row.
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
    if kind not in FORMS:
        source = _OtherBlocks(data, stored.kind)
        return _quantized(name, shape, segments, source, None, kind)
    return _quantized(name, shape, segments, blocks_of(data, kind, shape[1]), FORMS[kind], kind)


def blocks_of(data: StoredTensor, kind: str, columns: int) -> CodeSource:
    """Return the reader for blocks of a kind in FORMS; `data` holds their bytes, [rows, bytes of a row]."""
    return (_SuperBlocks if kind in SUPER_BLOCKS else _Blocks)(data, kind, columns)


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
    """Reads rows made of blocks of 32 values; `data` holds their bytes [rows, bytes of a row]."""

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
        scales, rest = _half(blocks, 0), blocks[:, :, 2:]
        if self.kind == "Q8_0":
            q = np.ascontiguousarray(rest).view(np.int8).astype(np.int16)
            return Codes(q.reshape(end - begin, -1), scales, self.groups)
        minimums = None
        if self.kind.endswith("_1"):
            minimums, rest = _half(blocks, 2), rest[:, :, 2:]
        middle = 8
        if self.kind.startswith("Q5"):
            fifth = np.unpackbits(rest[:, :, :4], axis=2, bitorder="little")
            q, middle = _nibbles(rest[:, :, 4:]) | fifth.astype(np.int16) << 4, 16
        else:
            q = _nibbles(rest)
        if minimums is not None:
            minimums = minimums + middle * scales
        return Codes((q - middle).reshape(end - begin, -1), scales, self.groups, minimums)


@dataclass(frozen=True)
class _SuperBlocks(_Blocks):
    """Reads rows of Q4_K or Q5_K."""

    def codes(self, begin: int, end: int) -> Codes:
        rows = end - begin
        blocks = _raw(self.data, begin, end).reshape(rows, -1, SUPER_BLOCKS[self.kind])
        scales, minimums = _six_bits(blocks[:, :, 4:16])
        scales = scales * _half(blocks, 0)[:, :, None]
        minimums = -minimums * _half(blocks, 2)[:, :, None]
        pairs = blocks[:, :, -128:].reshape(rows, -1, 4, 1, 32)
        q = np.concatenate([pairs & 15, pairs >> 4], axis=3).reshape(rows, -1, 8, 32).astype(np.int16)
        middle = 8
        if self.kind == "Q5_K":
            fifth = blocks[:, :, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
            q, middle = q | fifth.astype(np.int16) << 4, 16
        minimums = minimums + middle * scales
        return Codes((q - middle).reshape(rows, -1), scales.reshape(rows, -1), self.groups, minimums.reshape(rows, -1))


def _half(blocks: np.ndarray, at: int) -> np.ndarray:
    """Return the float16 at byte `at` of each block, as float32."""
    return np.ascontiguousarray(blocks[:, :, at : at + 2]).view(np.float16)[:, :, 0].astype(np.float32)


def _nibbles(data: np.ndarray) -> np.ndarray:
    return np.concatenate([data & 15, data >> 4], axis=2).astype(np.int16)


def _six_bits(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unpack 12 bytes to eight scales and eight minimums, float32 [rows, blocks, 8].

    The bits of the last four scales and minimums are spread over two bytes each.
    """
    low, high, both = data[:, :, :4], data[:, :, 4:8], data[:, :, 8:]
    scales = np.concatenate([low & 63, (both & 15) | (low >> 6) << 4], axis=2)
    minimums = np.concatenate([high & 63, both >> 4 | (high >> 6) << 4], axis=2)
    return scales.astype(np.float32), minimums.astype(np.float32)


@dataclass(frozen=True)
class _OtherBlocks:
    """Reads rows of a type that the package `gguf` dequantizes; `data` holds their bytes."""

    data: StoredTensor
    kind: int

    def values(self, begin: int, end: int) -> np.ndarray:
        import gguf

        kind = gguf.GGMLQuantizationType(self.kind)
        try:
            return np.asarray(gguf.dequantize(_raw(self.data, begin, end), kind), np.float32)
        except NotImplementedError:
            raise CheckpointError(f"the package gguf cannot dequantize {kind.name}", "give another file") from None
