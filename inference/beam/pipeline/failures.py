"""Checkpoints and counts failed rows, and ends a pipeline if too many rows fail.

A row counts once, however often and in however many steps it fails. Within a process the count is always exact.
Processes see each other's failures through the files in the output's `.parts`: each process reads them after writing
its own, every few seconds and at the end of each bundle. The last process to write sees all failures, so a run with too
many of them cannot finish.
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
    """More rows failed than allowed."""

    exit_code = EXIT_ROWS_FAILED


# A worker's error includes its traceback and the name of the step that raised it.
_RAISED = re.compile(rf"{TooManyFailuresError.__name__}: (.*?)(?: \[while running .*)?$", re.MULTILINE)


def too_many(error: BaseException) -> str | None:
    """The message of a worker that ended the pipeline because of too many failures; None for any other error."""
    found = _RAISED.search(str(error)) or _RAISED.search(f"{type(error).__name__}: {error}")
    return found.group(1) if found else None


@dataclass
class _Known:
    """The failures of a run known to this process: positions of rows, and the files read so far."""

    rows: set[tuple[str | None, int]] = field(default_factory=set)
    seen: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)


_known: dict[str, _Known] = {}


class NoteFailures(beam.DoFn):
    """Records failures and passes them on.

    Args:
        run: distinguishes this run from others in the same process.
        writer: directory for failure checkpoints, and the seconds between them.
        most: number of rows that may fail; None for no limit.
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
        """Count the failures that other processes have written."""
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
    """Discards the count of a run."""
    _known.pop(run, None)
