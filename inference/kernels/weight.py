"""A weight on the device: its memory, and its format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from inference.kernels.formats import Format


@dataclass(frozen=True, eq=False)
class Addition:
    """What one adapter adds to some rows of a matrix: up [rows, rank] times down [rank, columns], float32.

    Args:
        adapter: by which number tokens ask for it, from 1.
        first_row: of the matrix's rows.
    """

    adapter: int
    first_row: int
    down: np.ndarray
    up: np.ndarray


@dataclass(frozen=True)
class Weight:
    """A vector, float32; or a matrix, float32 [rows, columns] or packed uint8 (`Format.shape`), as the kernels take it.

    Args:
        data: what the kernels' `empty` gave: a Parameter, or a numpy array.
        additions: of adapters, each for the tokens that ask for it.
    """

    data: Any
    format: Format
    additions: tuple[Addition, ...] = ()
