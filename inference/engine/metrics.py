"""Counts and times of a run, and their totals over ranks and replicas. Never prints.

Each metric is one field of `RunMetrics`, which states who counts it. JSON, the closing lines, and the sums over ranks
and replicas derive from the fields.

Terms: TTFT is the time from a request's arrival to its first token; TPOT the mean time per token after the first.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from inference.engine.percentiles import Percentiles
from inference.engine.request import FinishReason, Request

# Who counts a metric.
# REQUEST: `finished` counts it, from a request; on rank 0 also for requests that other replicas answered.
# STEP: the engine of each replica counts it; the other replicas send their values to rank 0 when they end.
# RUN: this process counts it for itself.
REQUEST, STEP, RUN = "request", "step", "run"


@dataclass
class StartupTimes:
    """Seconds before the first prompt could run, by phase.

    `python` runs from the start of the process to the import of MindSpore: the interpreter, the config, the tokenizer
    and all checks.
    """

    python: float = 0.0
    mindspore: float = 0.0
    weights: float = 0.0
    compile: float = 0.0


def _metric(counted_by: str, default: Any = 0, note: str | None = None) -> Any:
    """Declares a metric.

    Args:
        default: the initial value, or a class to call for it.
        note: text for the closing line; left out if the value is zero.
    """
    metadata = {"counted_by": counted_by, "note": note}
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class RunMetrics:
    """The metrics of a run; `startup` is separate from the work itself."""

    startup: StartupTimes = _metric(RUN, StartupTimes)
    requests: int = _metric(REQUEST)
    prompt_tokens: int = _metric(REQUEST)
    reused_tokens: int = _metric(REQUEST, note="{:,} tokens from the prefix cache")
    """Prompt tokens found in the prefix cache."""
    preemptions: int = _metric(REQUEST, note="{:,} preempted")
    """How often a row had to give its blocks to an older one."""
    completion_tokens: int = _metric(REQUEST)
    prefill_seconds: float = _metric(STEP, 0.0)
    decode_seconds: float = _metric(STEP, 0.0)
    wall_seconds: float = _metric(RUN, 0.0)
    ttft_seconds: Percentiles = _metric(REQUEST, Percentiles)
    tpot_seconds: Percentiles = _metric(REQUEST, Percentiles)
    row_seconds: Percentiles = _metric(REQUEST, Percentiles)
    """Seconds from the arrival of a request to its last token."""
    decode_tokens: int = _metric(STEP)
    rows_by_replica: list[int] = _metric(RUN, list)
    """Requests answered by each replica of the model; empty if there is only one."""

    def finished(self, request: Request) -> None:
        """Counts a finished request. One that was cancelled or that failed adds no latency."""
        self.requests += 1
        self.prompt_tokens += request.num_prompt_tokens
        self.reused_tokens += request.num_reused
        self.preemptions += request.times_put_back
        self.completion_tokens += len(request.output_ids)
        timing = request.timing
        ended_early = request.finish_reason in (FinishReason.CANCELLED, FinishReason.ERROR)
        if timing.ttft is None or timing.total is None or ended_early:
            return
        self.ttft_seconds.add(timing.ttft)
        self.row_seconds.add(timing.total)
        if len(request.output_ids) > 1:
            self.tpot_seconds.add((timing.total - timing.ttft) / (len(request.output_ids) - 1))

    def step(self, seconds: float, tokens: int, chosen: int) -> None:
        """Counts a step that computed `tokens` tokens and chose `chosen` new ones."""
        if tokens > chosen:
            self.prefill_seconds += seconds
        else:
            self.decode_seconds += seconds
            self.decode_tokens += chosen

    def add_replica(self, other: RunMetrics) -> None:
        """Adds the work that another replica did at the same time: the rates of both add up."""
        prefill_tokens = self._computed + other._computed
        prefill, decode = self.prefill_rate + other.prefill_rate, self.decode_rate + other.decode_rate
        self.rows_by_replica = [*(self.rows_by_replica or [self.requests]), other.requests]
        for name in names_counted_by(REQUEST, STEP):
            mine, theirs = getattr(self, name), getattr(other, name)
            if isinstance(mine, Percentiles):
                mine.update(theirs)
            else:
                setattr(self, name, mine + theirs)
        # The seconds that all replicas working together would have taken.
        self.prefill_seconds = prefill_tokens / prefill if prefill else 0.0
        self.decode_seconds = self.decode_tokens / decode if decode else 0.0

    def step_figures(self) -> dict[str, Any]:
        """Returns the metrics that a replica sends to rank 0 when it ends."""
        return {name: getattr(self, name) for name in names_counted_by(STEP)}

    def take_step_figures(self, figures: Mapping[str, Any]) -> None:
        """Takes the metrics that a replica has sent."""
        for name in names_counted_by(STEP):
            setattr(self, name, figures[name])

    @property
    def notes(self) -> list[str]:
        """Notes for the closing line."""
        noted = [(item.metadata["note"], getattr(self, item.name)) for item in fields(self)]
        return [note.format(value) for note, value in noted if note and value]

    @property
    def _computed(self) -> int:
        return self.prompt_tokens - self.reused_tokens

    @property
    def ttft(self) -> float | None:
        """Median time to first token, seconds."""
        return self.ttft_seconds.percentile(50)

    @property
    def prefill_rate(self) -> float:
        """Prompt tokens computed per second, over the steps that had prompt tokens."""
        return self._computed / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_rate(self) -> float:
        """New tokens per second, over the steps that only decoded."""
        return self.decode_tokens / self.decode_seconds if self.decode_seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Returns all metrics, for JSON."""
        values = {item.name: _plain(getattr(self, item.name)) for item in fields(self)}
        rates = {"prefill_tokens_per_second": self.prefill_rate, "decode_tokens_per_second": self.decode_rate}
        return {**values, **rates, "peak_memory_bytes": peak_memory()}


def names_counted_by(*who: str) -> list[str]:
    """Returns the names of the metrics counted by any of `who`."""
    return [item.name for item in fields(RunMetrics) if item.metadata["counted_by"] in who]


def _plain(value: Any) -> Any:
    if isinstance(value, Percentiles):
        return value.as_dict()
    return asdict(value) if isinstance(value, StartupTimes) else value


def process_age() -> float:
    """Returns the seconds since this process started (on Linux, from proc(5), field 22 of stat)."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return uptime - int(fields[19]) / os.sysconf("SC_CLK_TCK")


def peak_memory() -> int:
    """Returns the peak memory of this process in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts kibibytes, macOS bytes.
    return peak if sys.platform == "darwin" else peak * 1024
