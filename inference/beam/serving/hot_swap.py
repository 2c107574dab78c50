"""The model of a step of a pipeline: it can be exchanged for another while batches run.

The new model is loaded beside the old one and tried out; a bad one is refused, and the old one goes on. A batch keeps
the model with which it began. Knows models; knows nothing about Beam.
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

from inference.beam.serving.shared_model import Answers, LoadedModel, Notes, loaded_model
from inference.config import InferenceConfig
from inference.errors import InferenceError

logger = logging.getLogger(__name__)

# Polls at which a model that was refused is tried again: its files may not have been complete.
TRIALS = 3


@dataclass(frozen=True)
class Candidate:
    """A model that may take the place of another.

    Args:
        model_id: where it is, and what it is called in results.
        name: what it is called in metrics; empty for the model with which a pipeline begins.
        stamp: tells apart what was at the same place at different times.
    """

    config: InferenceConfig
    model_id: str
    name: str = ""
    stamp: str = ""


@dataclass(frozen=True)
class Event:
    """An exchange of models: done, or refused with a reason."""

    name: str
    model_id: str
    refused: str | None = None
    load_seconds: float = 0.0
    num_bytes: int = 0


@dataclass(frozen=True)
class Reply:
    """What came of a batch, the model that answered it, and the exchanges since the last reply."""

    answers: Answers
    model_id: str
    name: str
    events: list[Event]


@dataclass(frozen=True)
class Trial:
    """What a new model must stand before it is used.

    Args:
        rows: prompts that it must answer, as for `MindSporeModelHandler`; one that is a mapping may have a
            `reference`, which the answer must be, blanks at the ends aside.
        judge: is given the records of the answers; says why the model is no good, or None.
    """

    rows: Sequence[Any] = ()
    judge: Callable[[list[dict[str, Any]]], str | None] | None = None

    def objection(self, model: LoadedModel) -> str | None:
        """Why a model is no good, or None."""
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
    """A model that did not stand its trial."""


def loaded(candidate: Candidate, copy_id: str = "") -> LoadedModel:
    """The model of a candidate.

    Args:
        copy_id: names one of several copies, each of which is a model of its own.
    """
    return loaded_model(candidate.config, candidate.model_id, candidate.stamp + copy_id)


def tried(candidate: Candidate, trial: Trial, copy_id: str = "") -> LoadedModel:
    """The loaded model of a candidate that stood its trial.

    Raises:
        InferenceError: it cannot be loaded, or it is no good.
    """
    model = loaded(candidate, copy_id)
    reason = trial.objection(model)
    if reason is not None:
        raise RefusedError(reason)
    return model


class ServedModel:
    """A model that can be exchanged.

    All methods take and give what can be pickled: the caller may be in another process.

    Args:
        model: the one to begin with.
        candidate: what it was loaded from.
        trial: what later ones must stand.
        refused: what was to be loaded in its place, and why it was not.
        copy_id: names it where it is one of several copies, as later models in its place are.
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
        """Answers a batch, as `LoadedModel.answer`."""
        model, candidate = self._current
        return Reply(model.answer(examples, settings, notes), model.model_id, candidate.name, self._taken_events())

    def model_id(self) -> str:
        return self._current[0].model_id

    def name(self) -> str:
        """What the model is called in metrics."""
        return self._current[1].name

    def num_bytes(self) -> int:
        """Bytes of the weights in memory."""
        return self._current[0].num_bytes

    def exchange(self, candidate: Candidate, again: bool = False) -> bool:
        """Takes another model, if it is good; returns when the next batch gets it. Whether it was.

        Args:
            again: try it also where it was refused before.
        """
        with self._exchanging:
            if self._current[1] == candidate:
                return True
            if _mark(candidate) in self._refused and not again:
                return False
            try:
                model = tried(candidate, self._trial, self._copy_id)
            except Exception as error:  # whatever a broken model does, the old one goes on
                self._refuse(candidate, error)
                return False
            self._current = (model, candidate)
            self._events.append(Event(candidate.name, candidate.model_id, None, model.load_seconds, model.num_bytes))
            logger.warning("model refresh: %s answers from now on", candidate.model_id)
            return True

    def watch(self, find: Callable[[], Candidate | None], interval: float, begun_with: Candidate | None) -> None:
        """Looks for new models in a thread of its own, for as long as this object is used. One watch is enough: later
        calls for the same do nothing.

        Args:
            find: gives the newest.
            interval: seconds between two looks.
            begun_with: what `find` gave before this model was loaded.
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
        logger.error("model refresh: %s is refused, %s goes on: %s", candidate.model_id, self.model_id(), reason)

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
    except Exception as error:  # a file system that is away for a while
        logger.warning("model refresh: cannot look for a new model: %s", error)
        return None
