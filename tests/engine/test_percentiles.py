"""Percentiles from buckets are those of the sorted times, to half a percent."""

from __future__ import annotations

import math
import random

from hypothesis import given
from hypothesis import strategies as st

from inference.engine.percentiles import GROWTH, SHORTEST, Percentiles


def percentiles(times: list[float]) -> Percentiles:
    found = Percentiles()
    for time in times:
        found.add(time)
    return found


@given(st.lists(st.floats(SHORTEST, 1e4), min_size=1, max_size=200), st.integers(1, 100))
def test_percentiles_are_those_of_the_sorted_times(times: list[float], percent: int) -> None:
    exact = sorted(times)[math.ceil(len(times) * percent / 100) - 1]
    assert abs(percentiles(times).percentile(percent) / exact - 1) <= (GROWTH - 1) / 2 * 1.01


def test_figures() -> None:
    empty = Percentiles()
    assert empty.as_dict() == {"p50": None, "p90": None, "p99": None, "max": None} and empty.buckets() == []
    found = percentiles([0.0, 1.0, 2.0])
    assert found.as_dict()["max"] == 2.0 == found.greatest
    assert found.percentile(1) == SHORTEST
    assert sum(count for _, count in found.buckets()) == found.count == 3


def test_it_stays_small() -> None:
    chance = random.Random(0)
    assert len(percentiles([chance.uniform(0.01, 10) for _ in range(50_000)]).buckets()) < 800
