"""A weight on the device: its memory, and its format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from inference.kernels.formats import Format

if TYPE_CHECKING:
    from mindspore import Parameter


@dataclass(frozen=True)
class Weight:
    """A vector, float32; a matrix, float32 [rows, columns] or packed uint8 (`Format.shape`), as the kernels take it."""

    parameter: Parameter
    format: Format
