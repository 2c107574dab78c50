"""The benchmark of batching: its rows, its batches, and a run on the demo model."""

from __future__ import annotations

from pathlib import Path

import bench_batch
from click.testing import CliRunner

DEMO = Path(bench_batch.__file__).parent.parent / "inference" / "demo"


def test_rows_are_the_same_at_every_run_and_within_their_lengths() -> None:
    rows = bench_batch.make_rows(20, 30, 100)
    assert rows == bench_batch.make_rows(20, 30, 100)
    assert {16 <= len(ids) <= 30 and 16 <= new <= 30 and max(ids) < 100 for ids, new in rows} == {True}


def test_a_static_batch_ends_before_the_next_begins() -> None:
    given = []

    class Fake:
        def many(self, requests: list, at_once: int) -> tuple[float, list]:
            given.append((len(requests), at_once))
            return 1.5, []

    rows = [([1], 1)] * 5
    assert bench_batch.batches(Fake(), rows, 2) == 4.5 and given == [(2, 2), (2, 2), (1, 2)]


def test_a_table() -> None:
    arguments = ["--model", str(DEMO), "--rows", "3", "--longest", "20", "--at-once", "2"]
    done = CliRunner().invoke(bench_batch.main, arguments, catch_exceptions=False)
    names = [line.split(" | ")[0] for line in done.stdout.splitlines()[2:]]
    assert names == ["|", "| ---", "| one by one", "| static batches of 8", "| continuous, 2 at once"]
