"""How far a pipeline is: a line on stderr now and then, of what its workers have left in the output's `.parts`.

So it is the same on every runner, and what it counts is safe. Knows files and terminals; knows nothing about models.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from inference.beam.pipeline.files import ANSWERS, DONE, FAILURES, READ, OutputDirectory, rows_in
from inference.terminal.progress import ProgressLine, clock

# Seconds between two looks at what is done.
LOOK = 1.0


@dataclass(frozen=True)
class Work:
    """What a run has to do.

    Args:
        inputs: files and prompts.
        answers_per_row: on its way through all steps.
        exact: every row gets that many, if it does not fail.
    """

    inputs: int
    answers_per_row: float = 1.0
    exact: bool = True


@dataclass(frozen=True)
class Standing:
    """A run at one moment.

    Args:
        inputs: files and prompts that were read to their end.
        rows: in them.
        done: rows that earlier runs have done.
        answers: that are safe.
        before: of these, answers that were safe when the run began.
        failed: rows.
    """

    inputs: int
    rows: int
    done: int
    answers: int
    before: int
    failed: int

    def line(self, work: Work, seconds: float) -> str:
        """All of it in a line, `seconds` after the run began."""
        if self.inputs < work.inputs:
            return f"reading: {self.inputs:,} of {work.inputs:,} inputs, {self.rows:,} rows"
        rate = (self.answers - self.before) / max(seconds, 1e-9)
        expected = max((self.rows - self.done) * work.answers_per_row, self.answers)
        about = "" if work.exact else "about "
        line = f"{self.answers:,} of {about}{expected:,.0f} answers, {self.failed:,} failed; {rate:,.1f} a second"
        if not rate:
            return line
        left = max(expected - self.answers - self.failed, 0)
        return f"{line}; ETA {clock(left / rate)}"


@contextmanager
def progress(output: OutputDirectory | None, work: Work) -> Iterator[None]:
    """Shows how far a run is that writes into a directory."""
    if output is None:
        yield
        return
    line = ProgressLine(sys.stderr, sys.stderr.isatty())
    ended = threading.Event()
    begun, before = time.perf_counter(), output.count(ANSWERS)

    def look() -> None:
        while not ended.wait(LOOK):
            if line.is_due:
                seconds = time.perf_counter() - begun
                line.show(standing(output, before).line(work, seconds), seconds)

    thread = threading.Thread(target=look, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        line.clear()


def standing(output: OutputDirectory, before: int) -> Standing:
    """How far the run is that writes into a directory."""
    # Looked at once: on an object store each look is a request, or many.
    read, done, answers, failures = output.parts_by_kind(READ, DONE, ANSWERS, FAILURES)
    return Standing(len(read), rows_in(read), rows_in(done), rows_in(answers), before, rows_in(failures))
