"""Writes a job's figures as JSON and as a plot.

Knows files and matplotlib; all figures come from `metrics` and from the job's course.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from inference.engine.metrics import RunMetrics
from inference.errors import InputError
from inference.jobs.run import Outcome
from inference.jobs.save_file import replace_file


def metrics_of(outcome: Outcome, metrics: RunMetrics, model: str, earlier: int) -> dict[str, Any]:
    """All figures of a run. Times are in seconds, memory in bytes; percentiles cover the answered rows."""
    return {
        "model": model,
        "rows": outcome.rows,
        "failed": outcome.failed,
        "rows_of_earlier_runs": earlier,
        "stopped": outcome.stopped,
        "first_failure": outcome.first_failure,
        "tokens_in_per_second": metrics.prompt_tokens / outcome.seconds if outcome.seconds else 0.0,
        "tokens_out_per_second": metrics.completion_tokens / outcome.seconds if outcome.seconds else 0.0,
        **metrics.as_dict(),
    }


def write_metrics(path: Path, figures: dict[str, Any]) -> None:
    """Writes the figures as JSON, atomically."""
    replace_file(path, json.dumps(figures, indent=1, ensure_ascii=False).encode() + b"\n")


def check_target(path: Path, what: str) -> None:
    """Rejects a path that cannot be written, before a model is loaded.

    Raises:
        InputError: its directory does not exist, the path is itself a directory, or it may not be written.
    """
    if path.is_dir() or not path.parent.is_dir():
        problem = "is a directory" if path.is_dir() else f"cannot be created: there is no directory {path.parent}"
        raise InputError(f"{what}: {path} {problem}", "give the name of a file")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"{what}: {path} cannot be written: permission denied", "give another name")


def check_plot(path: Path) -> None:
    """Rejects a plot that cannot be drawn at the end of the run.

    Raises:
        InputError: matplotlib is not installed, or does not know the suffix.
    """
    check_target(path, "--metrics_plot")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError:
        raise InputError("--metrics_plot needs the package matplotlib", "pip install matplotlib") from None
    known = sorted(FigureCanvasAgg.get_supported_filetypes())
    if path.suffix.lstrip(".").lower() not in known:
        raise InputError(f"--metrics_plot: {path} is of no known kind", f"known: {', '.join(known)}")


def write_plot(path: Path, outcome: Outcome, metrics: RunMetrics, model: str) -> None:
    """Plots a run over time (tokens per second, rows, KV cache) and the distribution of its latencies."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    (rates, rows), (queue, latency) = figure.subplots(2, 2)
    points = outcome.course.points
    seconds = [point.seconds for point in points]
    for name in ("prompt_tokens", "completion_tokens"):
        rates.plot(*_rates(seconds, [getattr(point, name) for point in points]), label=name.replace("_", " "))
    rates.set(title="Tokens a second", xlabel="seconds")
    rows.plot(seconds, [point.rows for point in points], label="rows out")
    rows.set(title="Rows", xlabel="seconds")
    queue.plot(seconds, [point.running for point in points], label="running")
    queue.plot(seconds, [point.waiting for point in points], label="waiting")
    queue.set(title="Rows at once, and the KV cache (right)", xlabel="seconds")
    share = queue.twinx()
    share.plot(seconds, [100 * point.kv_use for point in points], color="tab:gray", linestyle=":", label="KV cache")
    share.set(ylim=(0, 105), ylabel="KV cache, %")
    named = (("TTFT", metrics.ttft_seconds), ("TPOT", metrics.tpot_seconds), ("row", metrics.row_seconds))
    for label, times in named:
        buckets = times.buckets()
        total, so_far = max(times.count, 1), 0
        shares = [100 * (so_far := so_far + count) / total for _, count in buckets]
        latency.step([1000 * time for time, _ in buckets], shares, where="post", label=label)
    latency.set(title="Latency", xlabel="ms", ylabel="% of rows at most", xscale="log")
    for axes in (rates, rows, queue, latency):
        axes.grid(alpha=0.3)
        axes.legend(loc="best", fontsize="small")
    figure.suptitle(f"{model}: {outcome.rows:,} rows, {outcome.failed:,} failed, {outcome.seconds:,.1f} s")
    drawn = io.BytesIO()
    canvas.print_figure(drawn, format=path.suffix[1:], dpi=120)
    replace_file(path, drawn.getvalue())


def _rates(seconds: Sequence[float], totals: Sequence[int]) -> tuple[list[float], list[float]]:
    """The rate of change per second between neighboring points."""
    pairs = list(zip(seconds, totals, strict=True))
    steps = [(end, (b - a) / (end - start)) for (start, a), (end, b) in pairwise(pairs) if end > start]
    return [end for end, _ in steps], [rate for _, rate in steps]
