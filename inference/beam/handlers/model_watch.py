"""Finds newer models: files that match a pattern, in any of Beam's file systems.

Knows files and their modification times; knows nothing about batches or how a model is replaced.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from apache_beam.io.filesystem import BeamIOError, FileMetadata
from apache_beam.io.filesystems import FileSystems
from apache_beam.ml.inference.base import ModelMetadata

from inference.beam.handlers.mindspore import MindSporeModelHandler, name_of
from inference.beam.serving.hot_swap import Candidate
from inference.errors import ModelNotFoundError


@dataclass(frozen=True)
class Pattern:
    """A glob pattern of model files, such as `models/*/model.safetensors`.

    The newest file counts; among equally new files, the last by name. A rewritten file counts as new.

    Args:
        until: seconds since the epoch after which no file counts as new.
    """

    glob: str
    until: float | None = None

    def newest(self) -> FileMetadata | None:
        """The newest file, or None."""
        if self.until is not None and time.time() > self.until:
            return None
        files = FileSystems.match([self.glob])[0].metadata_list
        return max(files, key=lambda file: (file.last_updated_in_seconds, file.path), default=None)

    def check(self) -> None:
        """Check that the pattern matches a file.

        Raises:
            ModelNotFoundError: it matches no file.
        """
        try:
            found = self.newest()
        except (BeamIOError, ValueError) as error:
            raise ModelNotFoundError(f"watch_model_pattern {self.glob} cannot be listed: {error}") from error
        if found is None:
            raise ModelNotFoundError(
                f"watch_model_pattern {self.glob} matches no file", "a pipeline begins with the newest of its files"
            )


@dataclass(frozen=True)
class Watch:
    """Finds the newest model of a pattern for a handler; can be called in another process."""

    pattern: Pattern
    handler: MindSporeModelHandler

    def __call__(self) -> Candidate | None:
        file = self.pattern.newest()
        if file is None:
            return None
        return self.handler.candidate(file.path, stamp=f"{file.last_updated_in_seconds} {file.size_in_bytes}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Watch) and self.pattern == other.pattern


class Poll:
    """Watches for a foreign handler: checks the pattern between batches and returns the newest model in Beam's form."""

    def __init__(self, pattern: Pattern, interval: float):
        self._pattern, self._interval = pattern, interval
        self._due = 0.0
        self._found: ModelMetadata | None = None

    def __call__(self) -> ModelMetadata | None:
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + self._interval
            file = self._pattern.newest()
            if file is not None:
                self._found = ModelMetadata(file.path, name_of(file.path))
        return self._found
