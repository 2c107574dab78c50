"""A weight on the device: its memory, and the format that the memory is in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from inference.kernels.formats import Format

if TYPE_CHECKING:
    from mindspore import Parameter


@dataclass(frozen=True)
class Weight:
    """float32 [rows, columns] (or a vector), or packed uint8 [rows, row_bytes]."""

    parameter: Parameter
    format: Format
