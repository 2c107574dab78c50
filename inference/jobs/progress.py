"""The progress of a job: its figures as a line, and over time for a plot.

Knows figures; `inference.terminal.progress` displays them.
"""

from __future__ import annotations

from dataclasses import dataclass

from inference.terminal.progress import clock

# Maximum number of points in a course; beyond that, every other point is dropped.
POINTS = 1000


@dataclass
class Figures:
    """A job at one moment.

    Args:
        done: rows written, and on the disk if there is a save file; includes failed rows and those of earlier runs.
        earlier: how many of these come from earlier runs.
        expected: total number of rows, if known or estimated.
        exact: whether `expected` is known rather than estimated.
        prompt_tokens: prompt tokens that went through the model in this run.
        kv_use: share of the KV cache in use, 0 to 1.
    """

    done: int = 0
    earlier: int = 0
    failed: int = 0
    expected: float | None = None
    exact: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0
    running: int = 0
    waiting: int = 0
    kv_use: float = 0.0

    def line(self, seconds: float) -> str:
        """Formats the figures as one line, `seconds` after the first row started."""
        seconds = max(seconds, 1e-9)
        total = "" if self.expected is None else f" of {'' if self.exact else 'about '}{self.expected:,.0f}"
        parts = [
            f"{self.done:,}{total} rows, {self.failed:,} failed",
            f"{self.prompt_tokens / seconds:,.0f} tok/s in, {self.completion_tokens / seconds:,.0f} out",
            f"{self.running} running, {self.waiting} waiting",
            f"KV cache {self.kv_use:.0%}",
        ]
        new = self.done - self.earlier
        if self.expected is not None and new:
            parts.append(f"ETA {clock(max(self.expected - self.done, 0) * seconds / new)}")
        return "; ".join(parts)


@dataclass(frozen=True)
class Point:
    """One sample of a job's course."""

    seconds: float
    rows: int
    prompt_tokens: int
    completion_tokens: int
    running: int
    waiting: int
    kv_use: float


class Course:
    """The figures of a job over time, in at most `POINTS` points."""

    def __init__(self) -> None:
        self.points: list[Point] = []
        self._interval, self._next = 0.05, 0.0

    def is_due(self, seconds: float) -> bool:
        """Whether it is time for the next point."""
        return seconds >= self._next

    def add(self, seconds: float, figures: Figures) -> None:
        """Adds a point."""
        self._next = seconds + self._interval
        f = figures
        self.points.append(
            Point(seconds, f.done - f.earlier, f.prompt_tokens, f.completion_tokens, f.running, f.waiting, f.kv_use)
        )
        if len(self.points) > POINTS:
            self.points = self.points[::2]
            self._interval *= 2
