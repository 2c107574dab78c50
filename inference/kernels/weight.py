"""A weight on the device: its memory and its format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from inference.kernels.formats import Format


@dataclass(frozen=True, eq=False)
class Addition:
    """One adapter's addition to some rows of a matrix: up [rows, rank] times down [rank, columns], float32.

    Args:
        adapter: the number by which tokens select it, from 1.
        first_row: first row of the matrix that it changes.
    """

    adapter: int
    first_row: int
    down: np.ndarray
    up: np.ndarray


@dataclass(frozen=True)
class Weight:
    """A float32 vector, or a matrix in the kernels' layout: float32 [rows, columns] or packed uint8 (`Format.shape`).

    Args:
        data: memory from the kernels' `empty`: a Parameter or a numpy array.
        additions: adapters' additions, each for the tokens that select it.
    """

    data: Any
    format: Format
    additions: tuple[Addition, ...] = ()
