"""Answers that are safe while a pipeline runs: a killed run loses the last seconds of work and no more.

Beam writes its output when everything is done, so each worker puts its answers into files of their own beside it,
every few seconds. Where an answer is there twice, after a bundle was tried again, either will do: the output is made of
the rows, and not of these files.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from inference.beam.files import OutputDirectory, open_file, write_file
from inference.inputs.files import ByteFile

# Answers of a file at most.
MOST = 1000


class CheckpointWriter:
    """Collects answers of one worker and step, and writes them now and then.

    Args:
        seconds: between two files.
    """

    def __init__(self, directory: OutputDirectory, step: str, seconds: float):
        self._directory, self._step, self._seconds = directory, step, seconds
        self._name = f"{step}-{uuid.uuid4().hex}"
        self._lines: list[str] = []
        self._number = 0
        self._due = time.monotonic() + seconds

    def add(self, key: str, record: Mapping[str, Any]) -> None:
        """Takes an answer."""
        self._lines.append(json.dumps({"custom_id": key, "step": self._step, "answer": record}))
        if len(self._lines) >= MOST or time.monotonic() >= self._due:
            self.flush()

    def flush(self) -> None:
        """Writes what there is."""
        if self._lines:
            name = f"{self._name}-{self._number:06}-{len(self._lines)}.jsonl"
            write_file(self._directory.join(".parts", name), "".join(f"{line}\n" for line in self._lines).encode())
            self._number += 1
            self._lines.clear()
        self._due = time.monotonic() + self._seconds


def read_checkpoint(path: str) -> Iterator[tuple[str, tuple[str, dict[str, Any]]]]:
    """Name, and step and answer, of each line of a file."""
    for _, line in ByteFile(path, lambda: open_file(path)).lines():
        values = json.loads(line)
        yield values["custom_id"], (values["step"], values["answer"])
