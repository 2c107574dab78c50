"""The benchmark in turns: what it makes of rates, and what it says without its peer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import bench_pairs

SCRIPT = Path(bench_pairs.__file__)


def test_a_ratio_is_the_median_of_turns_and_not_that_of_medians() -> None:
    # The machine is twice as fast in the second turn and half as fast in the third; ours is always 1.5 times theirs.
    (line,) = bench_pairs.table("int8", "q8_0", {"decode": [(30.0, 20.0), (60.0, 40.0), (15.0, 10.0)]})
    assert line == "| int8 | q8_0 | decode | 30.0 | 20.0 | 1.50 | 1.50 - 1.50 |"


def test_the_first_program_alternates() -> None:
    order = []

    class Fake:
        def __init__(self, name: str):
            self.name = name

        def rate(self, name: str, work: dict) -> float:
            order.append((name, self.name))
            return 2.0 if self.name == "ours" else 1.0

    pairs = bench_pairs.take_turns(Fake("ours"), Fake("theirs"), 2)
    assert all(rates == [(2.0, 1.0), (2.0, 1.0)] for rates in pairs.values())
    assert [who for _, who in order[:2]] == ["ours", "theirs"] and [who for _, who in order[-2:]] == ["theirs", "ours"]


def test_without_llama_cpp(tmp_path: Path) -> None:
    empty = tmp_path / "python"
    empty.symlink_to("/bin/false")
    command = [sys.executable, str(SCRIPT), "--peer-python", f"llamacpp={empty}", "--work", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith("llama.cpp is not measured")
    assert done.stderr.count("\n") == 1
