"""The distance between two profiles: 0 for equal distributions, 1 for distributions that do not overlap."""

from __future__ import annotations

from array import array
from collections import Counter

import numpy as np

from inference.validate.profile import Profile


def drift(one: Profile, other: Profile) -> dict[str, float]:
    """Return the distances of lengths, scripts and labels, keyed by the names that expectations use."""
    return {
        "drift_chars": kolmogorov_smirnov(one.chars, other.chars),
        "drift_tokens": kolmogorov_smirnov(one.tokens, other.tokens),
        "drift_scripts": total_variation(one.scripts, other.scripts),
        "drift_labels": total_variation(one.labels, other.labels),
    }


def kolmogorov_smirnov(one: array[int], other: array[int]) -> float:
    """Return the largest difference between two empirical distribution functions; 1 if only one side has values."""
    if not one or not other:
        return float(bool(one) != bool(other))
    left, right = (np.sort(np.frombuffer(values, np.int64)) for values in (one, other))
    points = np.concatenate([left, right])
    shares = [np.searchsorted(side, points, "right") / len(side) for side in (left, right)]
    return float(np.abs(shares[0] - shares[1]).max())


def total_variation(one: Counter[str], other: Counter[str]) -> float:
    """Return half the sum of the absolute differences of the shares; 1 if only one side has values."""
    totals = sum(one.values()), sum(other.values())
    if not all(totals):
        return float(any(totals))
    return sum(abs(one[name] / totals[0] - other[name] / totals[1]) for name in one.keys() | other.keys()) / 2
