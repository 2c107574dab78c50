"""Counts how often each token occurred in a sequence, as arrays, so that a penalty is one vector operation.

Knows token ids; knows nothing about requests or penalties.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

# Initial capacity in distinct tokens; doubled when it is full.
_ROOM = 64


class TokenCounts:
    """Distinct tokens in the order of their first occurrence, and their counts."""

    def __init__(self, tokens: Iterable[int] = ()):
        self._places: dict[int, int] = {}
        self._ids = np.zeros(_ROOM, np.int64)
        self._counts = np.zeros(_ROOM)
        self.total = 0
        """Tokens counted, including repeated ones."""
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        """Counts one more occurrence."""
        place = self._places.setdefault(token, len(self._places))
        if place == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[place] = token
        self._counts[place] += 1
        self.total += 1

    @property
    def ids(self) -> np.ndarray:
        """The distinct tokens [N]."""
        return self._ids[: len(self._places)]

    @property
    def counts(self) -> np.ndarray:
        """How often each of `ids` occurred [N], float64."""
        return self._counts[: len(self._places)]
