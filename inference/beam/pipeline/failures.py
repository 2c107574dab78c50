"""Rows that fail: made safe and counted while a pipeline runs, which ends where there are too many of them.

A row counts once, on however many ways and in however many tries it fails. In one process the count is exact at every
row. Processes see each other's failures through the files of the output's `.parts`: each looks when it has written
some, which it does every few seconds and at the end of each bundle. The last to write sees all, so no run with too many
failures comes to its end.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import apache_beam as beam

from inference.beam.pipeline.files import FAILURES, OutputDirectory
from inference.beam.pipeline.row_state import RowState, dead_letter_of
from inference.beam.pipeline.steps import Graph
from inference.beam.pipeline.worker_files import CheckpointWriter, flush_all, read_failures
from inference.errors import EXIT_ROWS_FAILED, InferenceError


class TooManyFailuresError(InferenceError):
    """More rows failed than may."""

    exit_code = EXIT_ROWS_FAILED


# The error of a worker comes with its traceback, and with the name of the step that raised it.
_RAISED = re.compile(rf"{TooManyFailuresError.__name__}: (.*?)(?: \[while running .*)?$", re.MULTILINE)


def too_many(error: BaseException) -> str | None:
    """What a worker said that ended the pipeline because of its failures; None for any other error."""
    found = _RAISED.search(str(error)) or _RAISED.search(f"{type(error).__name__}: {error}")
    return found.group(1) if found else None


@dataclass
class _Known:
    """Failures of a run that this process knows of: places of rows, and files that it has looked into."""

    rows: set[tuple[str | None, int]] = field(default_factory=set)
    seen: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)


_known: dict[str, _Known] = {}


class NoteFailures(beam.DoFn):
    """Lets failures through, and notes them.

    Args:
        run: tells this run apart from others of the same process.
        writer: where failures are made safe, and how often, seconds.
        most: how many rows may fail; None for any number.
    """

    def __init__(self, run: str, graph: Graph, writer: tuple[OutputDirectory, float] | None, most: int | None):
        self._run, self._graph, self._place, self._most = run, graph, writer, most
        self._writer: CheckpointWriter | None = None

    def setup(self) -> None:
        if self._place is not None:
            self._writer = CheckpointWriter(self._place[0], "failed", self._place[1], FAILURES)

    def process(self, state: RowState) -> Iterator[RowState]:
        written = self._writer is not None and self._writer.add(dead_letter_of(state, self._graph))
        if self._most is not None:
            self._count(state)
            if written:
                self._look()
        yield state

    def finish_bundle(self) -> None:
        if self._writer is not None and self._writer.flush() and self._most is not None:
            self._look()

    def _count(self, state: RowState) -> None:
        known = _known.setdefault(self._run, _Known())
        with known.lock:
            known.rows.add((state.file, state.row))
        self._check(known, str((state.error or {}).get("message")))

    def _look(self) -> None:
        """Counts what other processes have written."""
        assert self._place is not None
        known = _known.setdefault(self._run, _Known())
        with known.lock:
            for path in self._place[0].parts_of(FAILURES):
                if path not in known.seen:
                    known.rows.update(read_failures(path))
                    known.seen.add(path)
        self._check(known)

    def _check(self, known: _Known, last: str = "") -> None:
        most = self._most
        if most is None or len(known.rows) <= most:
            return
        flush_all()
        rows = "row" if most == 1 else "rows"
        raise TooManyFailuresError(f"more than {most} {rows} failed{f', the last: {last}' if last else ''}")


def forget(run: str) -> None:
    """Lets go of a run's count."""
    _known.pop(run, None)
