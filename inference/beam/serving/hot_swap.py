"""A model that can be replaced while batches run.

The new model is loaded beside the old one and validated. If it fails, it is rejected and the old one stays. A batch
keeps the model that it started with. Knows models; knows nothing about Beam.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inference.answering.shared_model import Answers, LoadedModel, Notes, loaded_model
from inference.config import InferenceConfig
from inference.errors import InferenceError

logger = logging.getLogger(__name__)

# How often to try a rejected model: its files may have been incomplete the first time.
TRIALS = 3


@dataclass(frozen=True)
class Candidate:
    """A model that may replace another.

    Args:
        model_id: its path, which is also its name in results.
        name: its name in metrics; empty for the initial model of a pipeline.
        stamp: distinguishes versions at the same path.
    """

    config: InferenceConfig
    model_id: str
    name: str = ""
    stamp: str = ""


@dataclass(frozen=True)
class Event:
    """A model replacement: completed, or rejected with a reason."""

    name: str
    model_id: str
    refused: str | None = None
    load_seconds: float = 0.0
    num_bytes: int = 0


@dataclass(frozen=True)
class Reply:
    """The answers of a batch, the model that gave them, and the replacements since the last reply."""

    answers: Answers
    model_id: str
    name: str
    events: list[Event]


@dataclass(frozen=True)
class Trial:
    """The validation that a new model must pass before it is used.

    Args:
        rows: prompts that it must answer, as for `MindSporeModelHandler`. A mapping may have a `reference`, which the
            answer must equal, apart from surrounding whitespace.
        judge: takes the records of the answers; returns why the model is rejected, or None to accept it.
    """

    rows: Sequence[Any] = ()
    judge: Callable[[list[dict[str, Any]]], str | None] | None = None

    def objection(self, model: LoadedModel) -> str | None:
        """Returns why a model is rejected, or None."""
        references = [row.get("reference") if isinstance(row, Mapping) else None for row in self.rows]
        records = model.answer([_without_reference(row) for row in self.rows]).records
        for record, reference in zip(records, references, strict=True):
            if record["error"] is not None:
                return f"a row of the validation failed: {record['error']['message']}"
            if reference is not None and record["text"].strip() != reference.strip():
                return f"{record['prompt']!r} was answered {record['text']!r}, the reference is {reference!r}"
        return self.judge(records) if self.judge else None


def _without_reference(row: Any) -> Any:
    if not isinstance(row, Mapping):
        return row
    return {key: value for key, value in row.items() if key != "reference"}


class RefusedError(InferenceError):
    """A model failed its validation."""


def loaded(candidate: Candidate, copy_id: str = "") -> LoadedModel:
    """Load the model of a candidate.

    Args:
        copy_id: name of one of several copies, which are separate models.
    """
    return loaded_model(candidate.config, candidate.model_id, candidate.stamp + copy_id)


def tried(candidate: Candidate, trial: Trial, copy_id: str = "") -> LoadedModel:
    """Load and validate the model of a candidate.

    Raises:
        InferenceError: the model cannot be loaded, or fails its validation.
    """
    model = loaded(candidate, copy_id)
    reason = trial.objection(model)
    if reason is not None:
        raise RefusedError(reason)
    return model


class ServedModel:
    """A model that can be replaced.

    Arguments and results of all methods can be pickled: the caller may be in another process.

    Args:
        model: the first model.
        candidate: the candidate it was loaded from.
        trial: the validation of later models.
        refused: a candidate that should have been loaded instead, and the error that prevented it.
        copy_id: name of this copy, if there are several; later models get it too.
    """

    def __init__(
        self,
        model: LoadedModel,
        candidate: Candidate,
        trial: Trial | None = None,
        refused: tuple[Candidate, Exception] | None = None,
        copy_id: str = "",
    ):
        self._current = (model, candidate)
        self._trial = trial or Trial()
        self._copy_id = copy_id
        self._exchanging = threading.Lock()
        self._refused: list[tuple[str, str]] = []
        self._events: deque[Event] = deque()
        self._watch: Callable[[], Candidate | None] | None = None
        if refused is not None:
            self._refuse(*refused)

    def answer(
        self, examples: Sequence[Any], settings: Mapping[str, Any] | None = None, notes: Notes | None = None
    ) -> Reply:
        """Answer a batch; see `LoadedModel.answer`."""
        model, candidate = self._current
        return Reply(model.answer(examples, settings, notes), model.model_id, candidate.name, self._taken_events())

    def model_id(self) -> str:
        return self._current[0].model_id

    def name(self) -> str:
        """The model's name in metrics."""
        return self._current[1].name

    def num_bytes(self) -> int:
        """Bytes of the weights in memory."""
        return self._current[0].num_bytes

    def exchange(self, candidate: Candidate, again: bool = False) -> bool:
        """Replace the model if the new one passes its validation. Returns whether the next batch will use it.

        Args:
            again: try the candidate even if it was rejected before.
        """
        with self._exchanging:
            if self._current[1] == candidate:
                return True
            if _mark(candidate) in self._refused and not again:
                return False
            try:
                model = tried(candidate, self._trial, self._copy_id)
            except Exception as error:  # keep the old model, whatever the broken one raises
                self._refuse(candidate, error)
                return False
            self._current = (model, candidate)
            self._events.append(Event(candidate.name, candidate.model_id, None, model.load_seconds, model.num_bytes))
            logger.warning("model update: %s is in use from now on", candidate.model_id)
            return True

    def watch(self, find: Callable[[], Candidate | None], interval: float, begun_with: Candidate | None) -> None:
        """Check for new models in a thread while this object is in use. Further calls for the same watch do nothing.

        Args:
            find: returns the newest candidate.
            interval: seconds between two checks.
            begun_with: the result of `find` before this model was loaded.
        """
        with self._exchanging:
            if self._watch == find:
                return
            self._watch = find
        arguments = (weakref.ref(self), find, interval, begun_with)
        threading.Thread(target=_keep_watch, args=arguments, name="watch", daemon=True).start()

    def _refuse(self, candidate: Candidate, error: Exception) -> None:
        self._refused.append(_mark(candidate))
        reason = str(error) or type(error).__name__
        self._events.append(Event(candidate.name, candidate.model_id, reason))
        logger.error("model update: %s is rejected, %s stays in use: %s", candidate.model_id, self.model_id(), reason)

    def _taken_events(self) -> list[Event]:
        return [self._events.popleft() for _ in range(len(self._events))]


def _mark(candidate: Candidate) -> tuple[str, str]:
    return candidate.model_id, candidate.stamp


def _keep_watch(
    served: weakref.ref[ServedModel], find: Callable[[], Candidate | None], interval: float, seen: Candidate | None
) -> None:
    trials = 0
    while True:
        time.sleep(interval)
        newest = _found(find)
        model = served()
        if model is None:
            return
        if newest is not None and newest != seen:
            trials += 1
            if model.exchange(newest, again=True) or trials == TRIALS:
                seen, trials = newest, 0
        del model


def _found(find: Callable[[], Candidate | None]) -> Candidate | None:
    try:
        return find()
    except Exception as error:  # the file system may be unavailable for a while
        logger.warning("model update: cannot look for a new model: %s", error)
        return None
