"""Checkpoints of a running pipeline: a killed run loses only the last seconds of work.

Beam writes its output when everything is done, so each worker writes its answers and failures into its own files every
few seconds. After a retried bundle, an answer may be stored twice. Either copy will do, because the output is made from
the rows and not from these files.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

from inference.beam.pipeline.files import ANSWERS, OutputDirectory, open_file, write_file
from inference.inputs.files import ByteFile

# Maximum number of lines per file.
MOST = 1000


class CheckpointWriter:
    """Collects the lines of one worker and writes them at intervals.

    Args:
        seconds: time between two files.
        kind: answers or failures.
    """

    def __init__(self, directory: OutputDirectory, name: str, seconds: float, kind: str = ANSWERS):
        self._directory, self._seconds, self._kind = directory, seconds, kind
        self._name = f"{name}-{uuid.uuid4().hex}"
        self._lines: list[str] = []
        self._number = 0
        self._due = time.monotonic() + seconds
        # After a signal or too many failures, another thread may write these lines.
        self._lock = threading.Lock()
        with _registering:
            _writers.add(self)

    def add(self, values: Mapping[str, Any]) -> bool:
        """Add a line. Returns whether lines were written."""
        with self._lock:
            self._lines.append(json.dumps(values))
            is_due = len(self._lines) >= MOST or time.monotonic() >= self._due
        return is_due and self.flush()

    def flush(self) -> bool:
        """Write all lines. Returns whether there were any."""
        with self._lock:
            self._due = time.monotonic() + self._seconds
            if not self._lines:
                return False
            name = f"{self._name}-{self._number:06}-{len(self._lines)}{self._kind}"
            write_file(self._directory.part(name), "".join(f"{line}\n" for line in self._lines).encode())
            self._number += 1
            self._lines.clear()
            return True


_writers: WeakSet[CheckpointWriter] = WeakSet()
_registering = threading.Lock()


@dataclass(frozen=True)
class Journal:
    """Checkpoints the answers of a step one by one as they arrive, because a batch may take long.

    It can be sent to another process, which then opens its own writer.

    Args:
        seconds: time between two files.
    """

    directory: OutputDirectory
    step: str
    seconds: float

    def add(self, record: Mapping[str, Any]) -> None:
        """Add the record of an answered row."""
        self._writer.add(answer_line(record["custom_id"], self.step, record))

    def flush(self) -> None:
        """Write all lines."""
        self._writer.flush()

    @property
    def _writer(self) -> CheckpointWriter:
        with _opening:
            if self not in _journals:
                _journals[self] = CheckpointWriter(self.directory, self.step, self.seconds)
            return _journals[self]


_journals: dict[Journal, CheckpointWriter] = {}
_opening = threading.Lock()


def flush_all() -> None:
    """Write the lines of all writers in this process."""
    with _registering:
        writers = list(_writers)
    for writer in writers:
        writer.flush()


def answer_line(key: str, step: str, answer: Mapping[str, Any]) -> dict[str, Any]:
    """A line of a file of answers."""
    return {"custom_id": key, "step": step, "answer": answer}


def read_answers(path: str) -> Iterator[tuple[str, tuple[str, dict[str, Any]]]]:
    """Yield (name, (step, answer)) for each line of a file of answers."""
    for values in _read(path):
        yield values["custom_id"], (values["step"], values["answer"])


def read_failures(path: str) -> Iterator[tuple[str | None, int]]:
    """Yield (file, row) for each line of a file of failures."""
    for values in _read(path):
        yield values["file"], values["row"]


def _read(path: str) -> Iterator[dict[str, Any]]:
    return (json.loads(line) for _, line in ByteFile(path, lambda: open_file(path)).lines())
