"""Output on stderr: messages, the load bar and the closing figures. Answers never go to stderr.

Knows terminals; all figures come from `metrics`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from inference.checkpoint.tensor import StoredTensor
from inference.engine.metrics import RunMetrics, peak_memory
from inference.models.weights.loading import Pairs
from inference.terminal.progress import byte_progress
from inference.terminal.style import styled

# Smallest checkpoint in bytes with a load bar; smaller ones load almost instantly.
BAR_FROM = 256 << 20


def say(text: str) -> None:
    """Writes one line to stderr; dim on a terminal, so that answers stand out."""
    sys.stderr.write(f"{styled(text, sys.stderr, dim=True)}\n")
    sys.stderr.flush()


def load_progress(pairs: Pairs | None) -> Callable[[StoredTensor], None] | None:
    """Returns a callback that shows load progress in bytes, with the file name; None for a small checkpoint."""
    total = sum(segment.size for tensor, _ in pairs or [] for segment in tensor.segments)
    if total < BAR_FROM:
        return None
    show = byte_progress(sys.stderr, total)
    return lambda tensor: show(tensor.segments[0].path.name, sum(segment.size for segment in tensor.segments))


def summary(metrics: RunMetrics, process_seconds: float | None) -> str:
    """Returns the closing lines: the work done, then the parts of the startup time."""
    ttft = f"{metrics.ttft * 1000:.0f} ms" if metrics.ttft is not None else "-"
    # The first token counts as part of the prompt, so an answer of one token has no rate.
    rate = f", {metrics.decode_rate:,.1f} tok/s" if metrics.decode_rate else ""
    work = (
        f"{count(metrics.requests, 'prompt')}: {metrics.prompt_tokens:,} tokens in, {metrics.prefill_rate:,.0f} tok/s; "
        f"{metrics.completion_tokens:,} out{rate}; TTFT {ttft}; "
        f"{metrics.wall_seconds:.2f} s in all; peak memory {peak_memory() / 1e6:,.0f} MB"
    )
    work = "; ".join([work, *metrics.notes])
    start = metrics.startup
    parts = (
        f"start-up: {start.python:.1f} s Python and checks, {start.mindspore:.1f} s importing MindSpore, "
        f"{start.weights:.1f} s weights, {start.compile:.1f} s compiling"
    )
    if process_seconds is not None:
        parts += f"; first token {process_seconds:.1f} s after the process started"
    return f"{work}\n{parts}"


def count(number: int, noun: str) -> str:
    """Formats a number with its noun: `1 prompt`, `2 prompts`."""
    return f"{number} {noun}" if number == 1 else f"{number:,} {noun}s"
