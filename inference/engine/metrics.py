"""Counts and times of a run, and what they add up to. Never prints.

Terms: TTFT is the time from a request's arrival to its first token; TPOT the mean time per token after the first.
"""

from __future__ import annotations

import os
import resource
import sys
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from inference.engine.percentiles import Percentiles
from inference.engine.request import FinishReason, Request


@dataclass
class StartupTimes:
    """Seconds that passed before the first prompt could run, by part.

    `python` is from the start of the process to the import of MindSpore: the interpreter, the config, the tokenizer
    and all checks.
    """

    python: float = 0.0
    mindspore: float = 0.0
    weights: float = 0.0
    compile: float = 0.0


@dataclass
class RunMetrics:
    """What happened in a run; `startup` apart from the work itself."""

    startup: StartupTimes = field(default_factory=StartupTimes)
    requests: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    """Of the prompts' tokens, those that the prefix cache had."""
    preemptions: int = 0
    """How often a row gave its blocks to an older one."""
    completion_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    wall_seconds: float = 0.0
    ttft_seconds: Percentiles = field(default_factory=Percentiles)
    tpot_seconds: Percentiles = field(default_factory=Percentiles)
    row_seconds: Percentiles = field(default_factory=Percentiles)
    """From the arrival of a request to its last token."""
    decode_tokens: int = 0
    rows_by_replica: list[int] = field(default_factory=list)
    """Requests that each copy of the model has answered, where there are several."""

    def finished(self, request: Request) -> None:
        """Counts a request that is done; one that was let go of, or has failed, has no latency."""
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
        """Counts a step that put `tokens` through the model and chose `chosen` next ones."""
        if tokens > chosen:
            self.prefill_seconds += seconds
        else:
            self.decode_seconds += seconds
            self.decode_tokens += chosen

    def add_replica(self, other: RunMetrics) -> None:
        """Takes what another copy of the model did at the same time: the rates of both add up."""
        prefill_tokens = self._computed + other._computed
        prefill, decode = self.prefill_rate + other.prefill_rate, self.decode_rate + other.decode_rate
        self.rows_by_replica = [*(self.rows_by_replica or [self.requests]), other.requests]
        for name in ("requests", "prompt_tokens", "reused_tokens", "preemptions", "completion_tokens", "decode_tokens"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        # The seconds in which all would have done the work together.
        self.prefill_seconds = prefill_tokens / prefill if prefill else 0.0
        self.decode_seconds = self.decode_tokens / decode if decode else 0.0
        self.ttft_seconds.update(other.ttft_seconds)
        self.tpot_seconds.update(other.tpot_seconds)
        self.row_seconds.update(other.row_seconds)

    @property
    def _computed(self) -> int:
        return self.prompt_tokens - self.reused_tokens

    @property
    def ttft(self) -> float | None:
        """Median time to first token, seconds."""
        return self.ttft_seconds.percentile(50)

    @property
    def prefill_rate(self) -> float:
        """Prompt tokens a second that were computed, over the steps that had prompt tokens."""
        return self._computed / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_rate(self) -> float:
        """New tokens a second, over the steps that only decoded."""
        return self.decode_tokens / self.decode_seconds if self.decode_seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """All figures, for JSON."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        values["startup"] = asdict(self.startup)
        latencies = {name: values.pop(name).as_dict() for name in ("ttft_seconds", "tpot_seconds", "row_seconds")}
        rates = {"prefill_tokens_per_second": self.prefill_rate, "decode_tokens_per_second": self.decode_rate}
        return {**values, **rates, **latencies, "peak_memory_bytes": peak_memory()}


def process_age() -> float:
    """Seconds since this process started, as the kernel counts them (Linux: proc(5), field 22 of stat)."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return uptime - int(fields[19]) / os.sysconf("SC_CLK_TCK")


def peak_memory() -> int:
    """The most memory that this process has had, bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts kibibytes, macOS bytes.
    return peak if sys.platform == "darwin" else peak * 1024
