"""Percentiles of times in little memory: a histogram whose buckets grow by a constant factor.

Knows numbers; knows nothing about what was timed.
"""

from __future__ import annotations

import math
from collections import Counter

# Each bucket is wider than the previous one by this factor: a percentile is off by at most half of the increase.
GROWTH = 1.01
# In seconds; shorter times are counted as this.
SHORTEST = 1e-6
PERCENTILES = (50, 90, 99)


class Percentiles:
    """Times in seconds, kept in about a thousand buckets, however many there are."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self.count = 0
        self.greatest = 0.0

    def add(self, seconds: float) -> None:
        self._counts[round(math.log(max(seconds, SHORTEST) / SHORTEST, GROWTH))] += 1
        self.count += 1
        self.greatest = max(self.greatest, seconds)

    def update(self, other: Percentiles) -> None:
        """Adds all times of another."""
        self._counts.update(other._counts)
        self.count += other.count
        self.greatest = max(self.greatest, other.greatest)

    def percentile(self, percent: float) -> float | None:
        """Returns the time that `percent` of all do not exceed (nearest rank), within 0.5 %; None if empty."""
        rank = max(math.ceil(self.count * percent / 100), 1)
        for bucket in sorted(self._counts):
            rank -= self._counts[bucket]
            if rank <= 0:
                return min(SHORTEST * GROWTH**bucket, self.greatest)
        return None

    def as_dict(self) -> dict[str, float | None]:
        """Returns `p50`, `p90`, `p99` and `max`."""
        return {f"p{p}": self.percentile(p) for p in PERCENTILES} | {"max": self.greatest if self.count else None}

    def buckets(self) -> list[tuple[float, int]]:
        """Returns times and how often they occurred, the shortest first."""
        return [(SHORTEST * GROWTH**bucket, self._counts[bucket]) for bucket in sorted(self._counts)]
