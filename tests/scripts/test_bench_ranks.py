"""The table of ranks: its medians, and what it refuses."""

from __future__ import annotations

import bench_ranks
from click.testing import CliRunner


def test_a_line_has_the_medians_of_its_runs() -> None:
    runs = [
        {"prefill_rate": 1000.0 * n, "decode_rate": 10.0 * n, "communication": 0.1 * n, "transport": "shared memory"}
        for n in (3, 1, 2)
    ]
    assert bench_ranks.row("m", "int8", 2, runs) == ["m", "int8", "2", "2,000", "20.0", "20%", "shared memory"]
    assert bench_ranks.row("m", "int8", 1, runs)[5] == ""


def test_an_unknown_shape_is_rejected_before_anything_runs() -> None:
    done = CliRunner().invoke(bench_ranks.main, ["--models", "llama-15m,llama-16m"])
    assert done.exit_code == 2 and "'llama-16m' is none of" in done.output
