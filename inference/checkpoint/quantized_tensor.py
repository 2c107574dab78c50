"""Tensors that a checkpoint stores quantized: groups of integers or 8-bit floats that share a scale.

Knows how to read such a tensor, as float32 or unchanged, and which of our formats holds it without another rounding.
Knows nothing about the layouts in files, which `quantized` (GPTQ, AWQ, compressed-tensors), `float8` and
`gguf_tensors` read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from inference.checkpoint.tensor import StoredTensor
from inference.kernels.formats import GROUP, Format, pack, unpack

# Elements dequantized at a time, so that working memory stays small.
CHUNK = 1 << 21
# Rows that the rounding error is measured on.
MEASURED = 64
# Largest relative error of a scale rounded to float16, unless it is subnormal.
HALF_ROUNDING = 2.0**-11


@dataclass(frozen=True)
class Codes:
    """Rows of a quantized matrix: the value at [r, c] is codes[r, c] * scales[r, groups[c]] + minimums[r, groups[c]].

    Args:
        codes: int16 [rows, columns], with the zero points subtracted.
        scales: float32 [rows, groups].
        groups: the group of each column, integers [columns].
        minimums: float32 [rows, groups]; None if all are zero.
    """

    codes: np.ndarray
    scales: np.ndarray
    groups: np.ndarray
    minimums: np.ndarray | None = None

    def values(self) -> np.ndarray:
        """Return the dequantized values, float32 [rows, columns]."""
        values = self.codes * self.scales[:, self.groups]
        return values if self.minimums is None else values + self.minimums[:, self.groups]

    def in_order(self, rows: np.ndarray) -> Codes:
        """Return these rows, in this order."""
        minimums = None if self.minimums is None else self.minimums[rows]
        return replace(self, codes=self.codes[rows], scales=self.scales[rows], minimums=minimums)

    def rounded(self) -> Codes:
        """Return the same codes with scales and minimums rounded to those that our formats hold."""
        minimums, groups = self.half_minimums(), np.arange(len(self.groups)) // GROUP
        wide = None if minimums is None else minimums.astype(np.float32)
        return replace(self, scales=self.half_scales().astype(np.float32), groups=groups, minimums=wide)

    def half_scales(self) -> np.ndarray:
        """Return the scales, float16 [rows, groups of 32 columns]."""
        return self.scales[:, self.groups[::GROUP]].astype(np.float16)

    def half_minimums(self) -> np.ndarray | None:
        """Return the minimums, float16 [rows, groups of 32 columns], or None if all are zero."""
        return None if self.minimums is None else self.minimums[:, self.groups[::GROUP]].astype(np.float16)


class Source(Protocol):
    """The layout of a quantized tensor in a file."""

    def values(self, begin: int, end: int) -> np.ndarray:
        """Return rows [begin, end), float32 [rows, columns]."""


class CodeSource(Source, Protocol):
    """A layout of integers and scales."""

    def codes(self, begin: int, end: int) -> Codes:
        """Return the codes of rows [begin, end)."""


@dataclass(frozen=True, kw_only=True)
class QuantizedTensor(StoredTensor):
    """A tensor whose values are computed as it is read; its segments name the bytes in the file, for digests only.

    Args:
        source: reads the values from the file.
        form: the narrowest of our formats that holds it without another rounding; None if none does.
        scheme: the common name of its quantization.
        first, left: the row and column of the source where it begins.
    """

    source: Source
    form: Format | None
    scheme: str
    first: int = 0
    left: int = 0

    def read_into(self, out: np.ndarray) -> None:
        rows = out.reshape(self.shape)
        step = max(1, CHUNK // self.shape[1])
        for begin in range(0, len(rows), step):
            end = min(begin + step, len(rows))
            values = self.source.values(self.first + begin, self.first + end)
            rows[begin:end] = values[:, self.left : self.left + self.shape[1]]

    def read_bytes_into(self, out: np.ndarray) -> None:
        self.read_into(out.view(np.float32))

    def rows(self, begin: int, end: int) -> QuantizedTensor:
        return replace(self, shape=(end - begin, self.shape[1]), first=self.first + begin)

    def columns(self, begin: int, end: int) -> QuantizedTensor:
        # If the cut is not at a group, one of our scales would cover columns of two stored groups.
        form = self.form if (self.left + begin) % GROUP == 0 else None
        return replace(self, shape=(self.shape[0], end - begin), left=self.left + begin, form=form)

    @property
    def can_be_mapped(self) -> bool:
        return False

    def is_held_by(self, precision: Format) -> bool:
        """Whether a format holds its integers exactly and its scales up to the rounding to float16."""
        return self.form in HELD_BY.get(precision, ())

    def codes(self) -> Codes:
        """Return all codes, for a tensor that one of our formats holds."""
        found = self.source.codes(self.first, self.first + self.shape[0])  # type: ignore[attr-defined]
        columns = slice(self.left, self.left + self.shape[1])
        return replace(found, codes=found.codes[:, columns], groups=found.groups[columns])


# The forms that each format holds without another rounding.
HELD_BY = {
    Format.INT4: (Format.INT4,),
    Format.INT8: (Format.INT4, Format.INT8),
    Format.INT4_MIN: (Format.INT4, Format.INT4_MIN),
    Format.INT8_MIN: (Format.INT4, Format.INT8, Format.INT4_MIN, Format.INT8_MIN),
}


def narrowest_form(lowest: int, highest: int, groups: np.ndarray, scales: np.ndarray) -> Format | None:
    """Return the narrowest of our formats for integers from `lowest` to `highest`; None if none holds the tensor.

    Args:
        groups: the group of each column.
        scales: all scales, float32.
    """
    if not np.array_equal(np.repeat(groups[::GROUP], GROUP)[: len(groups)], groups):
        return None
    with np.errstate(over="ignore"):
        moved = np.abs(scales.astype(np.float16).astype(np.float32) - scales)
    if not (moved <= HALF_ROUNDING * np.abs(scales)).all():
        return None
    if lowest >= -8 and highest <= 7:
        return Format.INT4
    return Format.INT8 if lowest >= -128 and highest <= 127 else None


def rounding_error(tensor: QuantizedTensor, form: Format) -> float:
    """Return the rms error of the weights in a format, relative to their rms; measured on the first rows."""
    part = tensor.rows(0, min(MEASURED, tensor.shape[0]))
    values = np.empty(part.shape, np.float32)
    part.read_into(values)
    moved = unpack(pack(values, form), form, *values.shape) - values
    return float(np.sqrt((moved**2).sum() / max((values**2).sum(), np.finfo(np.float32).tiny)))


def read_elements(tensor: StoredTensor, dtype: Any) -> np.ndarray:
    """Read a stored tensor's elements without conversion."""
    out = np.empty(tensor.shape, dtype)
    tensor.read_bytes_into(out.reshape(-1).view(np.uint8))
    return out


def read_values(tensor: StoredTensor) -> np.ndarray:
    """Read a stored tensor as float32."""
    out = np.empty(tensor.shape, np.float32)
    tensor.read_into(out)
    return out
