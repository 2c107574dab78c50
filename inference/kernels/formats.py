"""How weight matrices lie in memory: the formats of `cpp/formats.h`, and how to read them back.

Plain numpy; the packing and unpacking here are the reference that the kernels are held to.
"""

from __future__ import annotations

from enum import Enum

import numpy as np

GROUP = 32
PAIR = 2 * GROUP


class Format(Enum):
    """A weight format; the value is its name in `engine.weight_dtype`."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"
    INT4 = "int4"

    @property
    def code(self) -> int:
        """Its number in the native library."""
        return list(Format).index(self)

    @property
    def quantised(self) -> bool:
        return self in (Format.INT8, Format.INT4)

    @property
    def zero(self) -> int:
        """The quantised value that stands for 0."""
        return 128 if self is Format.INT8 else 8

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row."""
        wide = -(-columns // PAIR) * PAIR
        scales = wide // GROUP * 2
        return {
            Format.FLOAT32: 4 * columns,
            Format.FLOAT16: 2 * columns,
            Format.BFLOAT16: 2 * columns,
            Format.INT8: wide + scales,
            Format.INT4: wide // 2 + scales,
        }[self]


def unpack(packed: np.ndarray, weight_format: Format, columns: int) -> np.ndarray:
    """uint8 [rows, row_bytes] -> the float32 [rows, columns] that it stands for."""
    packed = np.ascontiguousarray(packed)
    rows = len(packed)
    if weight_format is Format.FLOAT32:
        return packed.view(np.float32)
    if weight_format is Format.FLOAT16:
        return packed.view(np.float16).astype(np.float32)
    if weight_format is Format.BFLOAT16:
        return (packed.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    wide = -(-columns // PAIR) * PAIR
    value_bytes = wide if weight_format is Format.INT8 else wide // 2
    scales = np.ascontiguousarray(packed[:, value_bytes:]).view(np.float16).astype(np.float32)
    values = packed[:, :value_bytes]
    if weight_format is Format.INT4:
        runs = values.reshape(rows, -1, GROUP)
        values = np.stack([runs & 15, runs >> 4], axis=2).reshape(rows, wide)
    groups = values.astype(np.float32).reshape(rows, -1, GROUP) - weight_format.zero
    return (groups * scales[:, :, None]).reshape(rows, wide)[:, :columns]


def pack(weights: np.ndarray, weight_format: Format) -> np.ndarray:
    """float32 [rows, columns] -> uint8 [rows, row_bytes]; the reference of the native library's `quantise`."""
    weights = np.ascontiguousarray(weights, np.float32)
    rows = len(weights)
    if weight_format is Format.FLOAT32:
        return weights.view(np.uint8)
    if weight_format is Format.FLOAT16:
        return weights.astype(np.float16).view(np.uint8)
    if weight_format is Format.BFLOAT16:
        return to_bfloat16(weights).view(np.uint8)
    groups = _grouped(weights)  # [rows, groups, 32]
    scales = _scales(groups, weight_format).astype(np.float16)
    wide = scales.astype(np.float32)[:, :, None]
    inverse = np.divide(1, wide, out=np.zeros_like(wide), where=wide != 0)
    limit = 127 if weight_format is Format.INT8 else 7
    lowest = -127 if weight_format is Format.INT8 else -8
    values = (np.clip(np.rint(groups * inverse), lowest, limit) + weight_format.zero).astype(np.uint8)
    if weight_format is Format.INT4:
        values = values[:, 0::2] | values[:, 1::2] << 4
    return np.concatenate([values.reshape(rows, -1), scales.view(np.uint8)], axis=1)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 -> the upper 16 bits, rounded to nearest even, as uint16; NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def _grouped(weights: np.ndarray) -> np.ndarray:
    rows, columns = weights.shape
    padded = np.zeros((rows, -(-columns // PAIR) * PAIR), np.float32)
    padded[:, :columns] = weights
    return padded.reshape(rows, -1, GROUP)


def _scales(groups: np.ndarray, weight_format: Format) -> np.ndarray:
    """int8: by the largest magnitude. int4: of 24 scales around it, both signs, the one with the least error."""
    largest = np.abs(groups).max(axis=2)
    if weight_format is Format.INT8:
        return largest / np.float32(127)
    best, least = np.zeros_like(largest), np.full_like(largest, np.inf)
    for step in range(24):
        scale = largest / np.float32(6 + np.float32(0.2) * (step % 12)) * (1 if step < 12 else -1)
        wide = np.where(scale == 0, 1, scale)[:, :, None]
        error = ((groups - np.clip(np.rint(groups / wide), -8, 7) * wide) ** 2).sum(axis=2)
        better = error < least
        best, least = np.where(better, scale, best), np.where(better, error, least)
    return best
