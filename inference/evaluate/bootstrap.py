"""Confidence intervals by resampling rows (Efron, 1979), for one model and for the difference of two models on the same
rows (Koehn, 2004).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

# Maximum number of sampled values in memory.
BLOCK = 4 << 20


@dataclass(frozen=True)
class Interval:
    """A score with the bounds of its confidence interval; NaN if there is nothing to score."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference(Interval):
    """One model's score minus another's.

    Args:
        better: share of the samples in which the first model has the greater score.
    """

    better: float


def interval(
    statistics: np.ndarray, value: Callable[[np.ndarray], float], samples: int, confidence: float, seed: int
) -> Interval:
    """Compute the interval of a score. `value` turns the sum over rows of statistics [rows, k] into the score."""
    scores = np.array([value(total) for total in _totals(statistics, samples, seed)])
    return Interval(value(statistics.sum(axis=0)), *_bounds(scores, confidence))


def difference(
    one: np.ndarray,
    other: np.ndarray,
    value: Callable[[np.ndarray], float],
    samples: int,
    confidence: float,
    seed: int,
) -> Difference:
    """Compute the interval of the difference of two scores; row i of both statistics belongs to the same example."""
    # The same seed samples the same rows for both.
    pairs = zip(_totals(one, samples, seed), _totals(other, samples, seed), strict=True)
    scores = np.array([value(left) - value(right) for left, right in pairs])
    measured = value(one.sum(axis=0)) - value(other.sum(axis=0))
    better = float(np.mean(scores > 0)) if samples else float("nan")
    return Difference(measured, *_bounds(scores, confidence), better)


def _totals(statistics: np.ndarray, samples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield sums [k] over samples of the rows, drawn with replacement, each as large as the data."""
    rows = len(statistics)
    generator = np.random.default_rng(seed)
    block = max(BLOCK // max(rows, 1), 1)
    for begin in range(0, samples if rows else 0, block):
        drawn = generator.multinomial(rows, np.full(rows, 1 / rows), size=min(block, samples - begin))
        yield from drawn @ statistics


def _bounds(scores: np.ndarray, confidence: float) -> tuple[float, float]:
    finite = scores[np.isfinite(scores)]
    if not len(finite):
        return float("nan"), float("nan")
    low, high = np.quantile(finite, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
