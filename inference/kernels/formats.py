"""Memory layouts of weight matrices: the formats of `cpp/formats.h`, and how to unpack them.

Plain numpy; the packing and unpacking here are the reference for testing the kernels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

import numpy as np

GROUP = 32
PAIR = 2 * GROUP
# Matrix rows per panel.
PANEL = 16


class Format(Enum):
    """A weight format; the value is its name in `engine.weight_dtype`."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"
    INT4 = "int4"
    INT8_MIN = "int8_min"
    INT4_MIN = "int4_min"

    @property
    def code(self) -> int:
        """The format's number in the native library."""
        return list(Format).index(self)

    @property
    def quantized(self) -> bool:
        return self in _FOUR_BITS + _EIGHT_BITS

    @property
    def has_minimum(self) -> bool:
        """Whether a group of 32 columns has a minimum in addition to its scale."""
        return self in (Format.INT8_MIN, Format.INT4_MIN)

    @property
    def is_four_bits(self) -> bool:
        return self in _FOUR_BITS

    @property
    def item_size(self) -> int:
        """Bytes per element, or per word of elements in a quantized format."""
        return 2 if self in (Format.FLOAT16, Format.BFLOAT16) else 4

    @property
    def zero(self) -> int:
        """The quantized value that represents 0."""
        return 8 if self.is_four_bits else 128

    @property
    def words(self) -> int:
        """Words per row in a pair of groups."""
        return 8 if self.is_four_bits else 16

    @property
    def scale_bytes(self) -> int:
        """Bytes of scales and minimums per row in a pair of groups."""
        return 2 * 2 * (1 + self.has_minimum)

    def shape(self, rows: int, columns: int) -> tuple[int, int]:
        """Return the shape of a packed matrix: [panels, bytes per panel]."""
        row_bytes = self.item_size * columns
        if self.quantized:
            row_bytes = -(-columns // PAIR) * (self.scale_bytes + 4 * self.words)
        return whole_panels(rows) // PANEL, PANEL * row_bytes


_FOUR_BITS = (Format.INT4, Format.INT4_MIN)
_EIGHT_BITS = (Format.INT8, Format.INT8_MIN)


def by_size(formats: Iterable[Format]) -> list[Format]:
    """Sort formats, the narrowest first."""
    return sorted(formats, key=lambda form: form.shape(1, PAIR))


@dataclass(frozen=True)
class MixedFormat:
    """A format for each matrix of a model, by parameter name; all other parameters are float32.

    It has the properties of `Format` that apply to a whole model.
    """

    by_parameter: Mapping[str, Format]

    @property
    def value(self) -> str:
        """Its display name: its formats, the narrowest first, such as int4_min+int8."""
        return "+".join(form.value for form in by_size(set(self.by_parameter.values())))

    @property
    def quantized(self) -> bool:
        return any(form.quantized for form in self.by_parameter.values())


# The format of a model's weights.
WeightFormat = Format | MixedFormat


def whole_panels(rows: int) -> int:
    """Round a number of rows up to whole panels."""
    return -(-rows // PANEL) * PANEL


def with_room(matrices: np.ndarray) -> np.ndarray:
    """[count, rows, columns] -> [count * room, columns]: pad each matrix with zero rows to whole panels."""
    count, rows, columns = matrices.shape
    room = np.zeros((count, whole_panels(rows), columns), matrices.dtype)
    room[:, :rows] = matrices
    return room.reshape(-1, columns)


def check_room(panels: np.ndarray, weight_format: Format, rows: int, columns: int) -> None:
    """Raise ValueError if packed memory does not have the size of a matrix with at least this many rows."""
    count, size = weight_format.shape(rows, columns)
    if panels.dtype != np.uint8 or panels.ndim != 2 or panels.shape[1] != size or len(panels) < count:
        raise ValueError(f"{panels.dtype} {list(panels.shape)} does not hold {rows} x {columns} {weight_format.value}")
    if not panels.flags.c_contiguous:
        raise ValueError("packed memory must be contiguous")


def unpack(panels: np.ndarray, weight_format: Format, rows: int, columns: int) -> np.ndarray:
    """Unpack uint8 [panels, panel bytes] to float32 [rows, columns]."""
    panels = np.ascontiguousarray(panels)
    check_room(panels, weight_format, rows, columns)
    fields = [_by_row(field) for field in _fields(panels, weight_format)]
    if not weight_format.quantized:
        (items,) = fields
        values = items.reshape(len(items), -1)[:rows]
        if weight_format is Format.BFLOAT16:
            return (values.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        return values.view(np.dtype(weight_format.value)).astype(np.float32)
    *scales, words = fields  # [rows, pairs, 2] of 2 bytes for scales and minimums, [rows, pairs, words] of 4 bytes
    values = words.view(np.uint8).reshape(len(words), -1, 2, 2 * weight_format.words)
    if weight_format.is_four_bits:
        values = np.concatenate([values & 15, values >> 4], axis=3)
    wide = [field.view(np.float16).astype(np.float32).reshape(len(field), -1, 2, 1) for field in scales]
    whole = (values.astype(np.float32) - weight_format.zero) * wide[0]
    if weight_format.has_minimum:
        whole += wide[1]
    return whole.reshape(len(words), -1)[:rows, :columns]


def pack(weights: np.ndarray, weight_format: Format) -> np.ndarray:
    """Pack float32 [rows, columns] to uint8 [panels, panel bytes]; the reference for the native library's packing."""
    panels = np.zeros(weight_format.shape(*weights.shape), np.uint8)
    pack_into(np.asarray(weights, np.float32), weight_format, panels)
    return panels


def pack_into(values: np.ndarray, weight_format: Format, panels: np.ndarray, first_row: int = 0) -> None:
    """Write values [rows, columns] into packed memory, starting at row `first_row`.

    Args:
        values: float32, or uint16 holding elements that are already in a 16-bit format.
        panels: uint8 [panels, panel bytes]. Rows that are never written must already be 0.
    """
    _write(_items(values, weight_format), values.shape, weight_format, panels, first_row)


def pack_codes_into(
    codes: np.ndarray,
    scales: np.ndarray,
    weight_format: Format,
    panels: np.ndarray,
    first_row: int = 0,
    minimums: np.ndarray | None = None,
) -> None:
    """Write an already quantized matrix, without rounding: its values are codes * scales + minimums.

    Args:
        codes: integers [rows, columns], from -8 to 7 for int4, from -128 to 127 for int8.
        scales: float16 [rows, groups of 32 columns].
        minimums: like `scales`; None for zeros. Only formats with minimums accept others.
    """
    assert minimums is None or weight_format.has_minimum
    rows, columns = codes.shape
    pairs = -(-columns // PAIR)
    q = np.full((rows, pairs * PAIR), weight_format.zero, np.uint8)
    q[:, :columns] = codes + weight_format.zero
    items = []
    for given in (scales, minimums)[: 1 + weight_format.has_minimum]:
        whole = np.zeros((rows, 2 * pairs), np.float16)
        if given is not None:
            whole[:, : given.shape[1]] = given
        items.append(whole.view("u2"))
    items += [_words(q.reshape(rows, -1, GROUP), weight_format)]
    _write(items, codes.shape, weight_format, panels, first_row)


def _write(
    items: list[np.ndarray], shape: tuple[int, ...], weight_format: Format, panels: np.ndarray, first_row: int
) -> None:
    rows, columns = shape
    check_room(panels, weight_format, first_row + rows, columns)
    first, last = first_row // PANEL, -(-(first_row + rows) // PANEL)
    # The first and last panels may hold rows of other matrices, which must not change.
    lanes = np.arange(first * PANEL, last * PANEL).reshape(last - first, PANEL)
    ours = (lanes >= first_row) & (lanes < first_row + rows)
    for field, item in zip(_fields(panels[first:last], weight_format), items, strict=True):
        by_lane = np.moveaxis(field, -1, 1)
        by_lane[ours] = item.reshape(rows, *by_lane.shape[2:])


def _fields(panels: np.ndarray, weight_format: Format) -> list[np.ndarray]:
    """Return views of packed memory whose last axis indexes the rows of a panel (`cpp/formats.h`).

    16 and 32 bits: [panels, columns, 16]. Quantized: scales, and minimums if the format has them, [panels, pairs, 2,
    16]; words [panels, pairs, words, 16].
    """
    if not weight_format.quantized:
        return [panels.view(f"u{weight_format.item_size}").reshape(len(panels), -1, PANEL)]
    head = PANEL * weight_format.scale_bytes
    pairs = panels.reshape(len(panels), -1, head + PANEL * 4 * weight_format.words)
    fields = [pairs[:, :, begin : begin + PANEL * 4].view("u2") for begin in range(0, head, PANEL * 4)]
    fields.append(pairs[:, :, head:].view("u4"))
    return [field.reshape(*field.shape[:2], -1, PANEL) for field in fields]


def _by_row(field: np.ndarray) -> np.ndarray:
    """[panels, ..., 16] -> [rows, ...], contiguous."""
    by_lane = np.moveaxis(field, -1, 1)
    return np.ascontiguousarray(by_lane.reshape(-1, *by_lane.shape[2:]))


def _items(values: np.ndarray, weight_format: Format) -> list[np.ndarray]:
    """Return the contents of `_fields` for a matrix, row by row."""
    if values.dtype == np.uint16:
        return [values]
    if weight_format is Format.FLOAT32:
        return [np.ascontiguousarray(values, np.float32).view("u4")]
    if weight_format is Format.FLOAT16:
        return [values.astype(np.float16).view("u2")]
    if weight_format is Format.BFLOAT16:
        return [to_bfloat16(values)]
    groups = _grouped(values)  # [rows, groups, 32]
    minimums = []
    if weight_format.has_minimum:
        half = np.float32(0.5)
        middles = (half * groups.min(axis=2) + half * groups.max(axis=2)).astype(np.float16)
        groups = groups - middles.astype(np.float32)[:, :, None]
        minimums = [middles.view("u2")]
    scales = _scales(groups, weight_format).astype(np.float16)
    wide = scales.astype(np.float32)[:, :, None]
    inverse = np.divide(1, wide, out=np.zeros_like(wide), where=wide != 0)
    lowest, limit = (-8, 7) if weight_format.is_four_bits else (-127, 127)
    q = (np.clip(np.rint(groups * inverse), lowest, limit) + weight_format.zero).astype(np.uint8)
    return [scales.view("u2"), *minimums, _words(q, weight_format)]


def _words(q: np.ndarray, weight_format: Format) -> np.ndarray:
    """Pack unsigned values, uint8 [rows, groups, 32], into words."""
    if weight_format.is_four_bits:
        q = q[:, :, : GROUP // 2] | q[:, :, GROUP // 2 :] << 4
    return np.ascontiguousarray(q).view("u4")


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Convert float32 to bfloat16 bits as uint16, rounding to nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def _grouped(weights: np.ndarray) -> np.ndarray:
    rows, columns = weights.shape
    padded = np.zeros((rows, -(-columns // PAIR) * PAIR), np.float32)
    padded[:, :columns] = weights
    return padded.reshape(rows, -1, GROUP)


def _scales(groups: np.ndarray, weight_format: Format) -> np.ndarray:
    """Return a scale per group. int8: from the largest magnitude. int4: the best of 24 near that."""
    largest = np.abs(groups).max(axis=2)
    if not weight_format.is_four_bits:
        return largest / np.float32(127)
    best, least = np.zeros_like(largest), np.full_like(largest, np.inf)
    for step in range(24):
        scale = largest / np.float32(6 + np.float32(0.2) * (step % 12)) * (1 if step < 12 else -1)
        wide = np.where(scale == 0, 1, scale)[:, :, None]
        error = ((groups - np.clip(np.rint(groups / wide), -8, 7) * wide) ** 2).sum(axis=2)
        better = error < least
        best, least = np.where(better, scale, best), np.where(better, error, least)
    return best
