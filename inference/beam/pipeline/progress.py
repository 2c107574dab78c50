"""Shows a pipeline's progress on stderr, from the files that its workers write into the output's `.parts`.

It therefore works the same on every runner, and counts only stored work. Knows files and terminals; knows nothing about
models.
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

# Seconds between two checks.
LOOK = 1.0


@dataclass(frozen=True)
class Work:
    """The work of a run.

    Args:
        inputs: number of files and prompts.
        answers_per_row: number of answers per row, over all steps.
        exact: whether every row that does not fail gets exactly that many.
    """

    inputs: int
    answers_per_row: float = 1.0
    exact: bool = True


@dataclass(frozen=True)
class Standing:
    """The progress of a run at one moment.

    Args:
        inputs: files and prompts that have been read completely.
        rows: rows in these inputs.
        done: rows done by earlier runs.
        answers: checkpointed answers.
        before: checkpointed answers when the run began.
        failed: rows that failed.
    """

    inputs: int
    rows: int
    done: int
    answers: int
    before: int
    failed: int

    def line(self, work: Work, seconds: float) -> str:
        """Format the progress as a line, `seconds` after the run began."""
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
    """Show the progress of a run while this context is active."""
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
    """The progress of the run that writes into a directory."""
    # List once: on an object store, each listing is one request or more.
    read, done, answers, failures = output.parts_by_kind(READ, DONE, ANSWERS, FAILURES)
    return Standing(len(read), rows_in(read), rows_in(done), rows_in(answers), before, rows_in(failures))
