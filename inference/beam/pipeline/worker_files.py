"""What is safe while a pipeline runs: a killed run loses the last seconds of work and no more.

Beam writes its output when everything is done, so each worker puts its answers and its failures into files of their own
beside it, every few seconds. Where an answer is there twice, after a bundle was tried again, either will do: the output
is made of the rows, and not of these files.
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

# Lines of a file at most.
MOST = 1000


class CheckpointWriter:
    """Collects lines of one worker, and writes them now and then.

    Args:
        seconds: between two files.
        kind: of the files: answers, or failures.
    """

    def __init__(self, directory: OutputDirectory, name: str, seconds: float, kind: str = ANSWERS):
        self._directory, self._seconds, self._kind = directory, seconds, kind
        self._name = f"{name}-{uuid.uuid4().hex}"
        self._lines: list[str] = []
        self._number = 0
        self._due = time.monotonic() + seconds
        # A signal or a row too many makes another thread write what this one has.
        self._lock = threading.Lock()
        with _registering:
            _writers.add(self)

    def add(self, values: Mapping[str, Any]) -> bool:
        """Takes a line; whether lines were written."""
        with self._lock:
            self._lines.append(json.dumps(values))
            is_due = len(self._lines) >= MOST or time.monotonic() >= self._due
        return is_due and self.flush()

    def flush(self) -> bool:
        """Writes what there is; whether there was anything."""
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
    """Where the answers of a step are made safe one by one, by whoever has them first: a batch takes its time.

    May be sent to another process, which then has a writer of its own.

    Args:
        seconds: between two files.
    """

    directory: OutputDirectory
    step: str
    seconds: float

    def add(self, record: Mapping[str, Any]) -> None:
        """Takes the record of a row with an answer."""
        self._writer.add(answer_line(record["custom_id"], self.step, record))

    def flush(self) -> None:
        """Writes what there is."""
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
    """Writes what the writers of this process have."""
    with _registering:
        writers = list(_writers)
    for writer in writers:
        writer.flush()


def answer_line(key: str, step: str, answer: Mapping[str, Any]) -> dict[str, Any]:
    """A line of a file of answers."""
    return {"custom_id": key, "step": step, "answer": answer}


def read_answers(path: str) -> Iterator[tuple[str, tuple[str, dict[str, Any]]]]:
    """Name, and step and answer, of each line of a file of answers."""
    for values in _read(path):
        yield values["custom_id"], (values["step"], values["answer"])


def read_failures(path: str) -> Iterator[tuple[str | None, int]]:
    """File and place of each row in a file of failures."""
    for values in _read(path):
        yield values["file"], values["row"]


def _read(path: str) -> Iterator[dict[str, Any]]:
    return (json.loads(line) for _, line in ByteFile(path, lambda: open_file(path)).lines())
