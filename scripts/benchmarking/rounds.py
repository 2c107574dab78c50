"""Runs cases in turn, over several rounds, and takes medians.

The machine is measured right before each case, so that a case's share of the bandwidth refers to the same moment.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarking import machine
from benchmarking.programs import CallError, Case

Figures = dict[str, Any]
# Reference for the other programs' answers: the first of these that was measured.
REFERENCES = (("transformers", "float32"), ("ours", "float32"), ("llama.cpp", "f32"))


def run(
    cases: list[Case], rounds: int, threads: int, gauge: Path | None, say: Callable[[str], None]
) -> dict[Case, list[Figures]]:
    """Return the figures of every case in every round; for a failing case, those before the failure.

    Args:
        gauge: the program that measures the machine (`machine.build`), or None.
        say: receives a line about each run and each failure.
    """
    measured: dict[Case, list[Figures]] = {case: [] for case in cases}
    failed: set[Case] = set()
    for number in range(rounds):
        # Reverse every second round, so that no case always follows the same neighbor.
        for case in cases if number % 2 == 0 else reversed(cases):
            if case in failed:
                continue
            say(f"round {number + 1}: {case}")
            try:
                measured[case].append(_once(case, threads, gauge))
            except CallError as error:
                failed.add(case)
                say(f"{case} fails and is left out: {error}")
    return measured


def _once(case: Case, threads: int, gauge: Path | None) -> Figures:
    figures: Figures = {}
    for call in case.calls:
        for path in call.reads:
            read_through(path)
    if gauge:
        limits = machine.measure(gauge, threads)
        figures |= {"bandwidth_gb_s": limits.bandwidth / 1e9, "gflops": limits.flops / 1e9}
    for call in case.calls:
        figures |= call.run()
    if gauge:
        figures["roof"] = figures["decode_1_tok_s"] * figures["token_bytes"] / (figures["bandwidth_gb_s"] * 1e9)
    return figures


def read_through(path: Path) -> None:
    """Read files into the page cache, so that loading does not measure the disk."""
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb", buffering=0) as data:
                while data.read(1 << 24):
                    pass


def row(case: Case, threads: int, measured: list[Figures]) -> Figures:
    """Return a row of the table: medians, and the relative spread of decode at batch 1 over the rounds."""
    result: Figures = {"model": case.model, "program": case.program, "weights": case.weights, "threads": threads}
    if not measured:
        return result
    for name, value in measured[0].items():
        is_number = isinstance(value, (int, float))
        result[name] = statistics.median(figures[name] for figures in measured) if is_number else value
    decode = [figures["decode_1_tok_s"] for figures in measured]
    result["rounds"] = len(measured)
    result["spread"] = (max(decode) - min(decode)) / result["decode_1_tok_s"]
    result["weights_mb"], result["kv_mb"] = result.pop("weight_bytes") / 1e6, result.pop("kv_bytes") / 1e6
    result["token_mb"] = result.pop("token_bytes") / 1e6
    result["over_mb"] = result["peak_mb"] - result["weights_mb"] - result["kv_mb"]
    return result


def compare(rows: list[Figures]) -> None:
    """Add `agree` to rows with answers: the share of leading ids that match their model's reference."""
    for reference in REFERENCES:
        for chosen in rows:
            if (chosen["program"], chosen["weights"]) != reference or "out_ids" not in chosen:
                continue
            for other in rows:
                if other["model"] == chosen["model"] and "out_ids" in other:
                    other.setdefault("agree", _leading(chosen["out_ids"], other["out_ids"]))


def _leading(expected: list[list[int]], got: list[list[int]]) -> float:
    same = 0
    for row, other in zip(expected, got, strict=True):
        same += next((place for place, pair in enumerate(zip(row, other, strict=True)) if len(set(pair)) > 1), len(row))
    return same / sum(map(len, expected))
