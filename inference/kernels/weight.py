"""A weight on the device: its memory, and its format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from inference.kernels.formats import Format


@dataclass(frozen=True)
class Weight:
    """A vector, float32; or a matrix, float32 [rows, columns] or packed uint8 (`Format.shape`), as the kernels take it.

    Args:
        data: what the kernels' `empty` gave: a Parameter, or a numpy array.
    """

    data: Any
    format: Format
