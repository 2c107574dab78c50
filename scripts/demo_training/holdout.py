"""The rule that keeps some combinations out of the training data.

Knows nothing about what a combination is. The rule depends only on the combination's text, so that training,
evaluation and the tests agree on it without sharing a list.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

ONE_IN = 20


def is_held_out(*parts: object) -> bool:
    """Whether training never sees the combination of `parts`; true for one in `ONE_IN` combinations."""
    return zlib.crc32("|".join(map(str, parts)).encode()) % ONE_IN == 0


def any_held_out(combinations: Iterable[tuple[object, ...]]) -> bool:
    """Whether a text that contains these combinations must stay out of the training data."""
    return any(is_held_out(*combination) for combination in combinations)
