"""Models that answer batches: one per config and process, shared by all threads and steps of a pipeline.

A row that fails does not affect the others. Knows models and rows; knows nothing about Beam.
"""

from __future__ import annotations

import json
import threading
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol
from weakref import WeakValueDictionary

from inference.answering.elements import prompt_from
from inference.api.llm import LLM, READ_AHEAD
from inference.config import GenerationConfig, InferenceConfig
from inference.errors import ConfigError, GenerationError, InferenceError, InputError, is_out_of_memory
from inference.generation.record import (
    BAD_ROW,
    MODEL_FAILED,
    OUT_OF_MEMORY,
    Completion,
    completion_of,
    failed_completion,
)
from inference.generation.samples import SampleGatherer
from inference.generation.text import AnswerRow, EncodedPrompt


@dataclass(frozen=True)
class Answers:
    """The results of a batch: a record per row, in order, and how often the batch was split in halves."""

    records: list[dict[str, Any]]
    halved: int = 0


class Notes(Protocol):
    """Receives the records of answers and stores them."""

    def add(self, record: Mapping[str, Any]) -> None:
        """Take a record."""

    def flush(self) -> None:
        """Store all records taken so far durably."""


class LoadedModel:
    """A loaded model that any number of threads can use.

    Args:
        llm: the model.
        model_id: its name in results.

    Attributes:
        load_seconds: time it took to load.
    """

    def __init__(self, llm: LLM, model_id: str, load_seconds: float = 0.0):
        self._llm = llm
        self.model_id = model_id
        self.load_seconds = load_seconds
        self._turns = _Turns()

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights in memory."""
        return self._llm.model.num_bytes

    def answer(
        self, examples: Sequence[Any], settings: Mapping[str, Any] | None = None, notes: Notes | None = None
    ) -> Answers:
        """Answer a batch. If a row cannot be answered, its record has the reason in `error`.

        Args:
            examples: as for `prompt_from`.
            settings: generation settings for all rows; a row's own settings override them.
            notes: receives the records of answers as they arrive.

        Raises:
            ConfigError: a setting is unknown.
        """
        llm = self._llm
        encoder = llm.model.encoder(llm.tokenizer, **(settings or {}))
        outcomes: dict[int, dict[str, Any]] = {}
        encoded = []
        for index, example in enumerate(examples):
            try:
                encoded.append(_seeded_by_name(encoder.encode(index, prompt_from(example))))
            except Exception as error:  # a template may raise anything; the error belongs to this row alone
                name = example.get("custom_id") if isinstance(example, Mapping) else None
                outcomes[index] = self._failed(str(name or ""), BAD_ROW, error)
        work = _Work(self, outcomes, notes)
        with self._turns.shared():
            left = work.run(encoded)
        if left:
            # One of these rows broke the engine. No other batch may be running when it breaks again.
            with self._turns.alone():
                work.run_in_halves(left)
        if notes is not None:
            notes.flush()
        records = [outcomes[index] for index in range(len(examples))]
        return Answers(records, work.halved)

    def _failed(self, name: str, kind: str, error: BaseException) -> dict[str, Any]:
        message = str(error) or type(error).__name__
        return failed_completion(name or None, None, kind, message, model=self.model_id).as_dict()


@dataclass
class _Work:
    """One batch in progress."""

    model: LoadedModel
    outcomes: dict[int, dict[str, Any]]
    notes: Notes | None = None
    halved: int = 0
    errors: dict[int, BaseException] = field(default_factory=dict)

    def run(self, rows: Sequence[EncodedPrompt]) -> list[EncodedPrompt]:
        """Run rows together. Returns those that were running when the engine broke."""
        llm, left = self.model._llm, []
        answers = (llm.model.row(sample, llm.tokenizer) for source in rows for sample in source.samples)
        gatherer = SampleGatherer()
        most = READ_AHEAD * llm.model.max_sequences
        for delivery in llm.model.background.stream(answers, most, every_token=False):
            assert isinstance(delivery.row, AnswerRow)
            answer = delivery.row.answer
            if delivery.error is None:
                whole = gatherer.take(answer)
                if whole is None:
                    continue
                self.outcomes[answer.row] = _without_row(completion_of(whole, self.model.model_id))
                if self.notes is not None:
                    self.notes.add(self.outcomes[answer.row])
            elif isinstance(delivery.error, InputError):
                self.fail(answer.source, BAD_ROW, delivery.error)
            elif isinstance(delivery.error, GenerationError):
                self.fail(answer.source, _kind_of(delivery.error), delivery.error)
            else:
                self.errors[answer.row] = delivery.error
                if answer.source.sample == 0:
                    left.append(answer.source)
        return left

    def run_in_halves(self, rows: Sequence[EncodedPrompt]) -> None:
        """Run rows in ever smaller parts. A row that breaks the engine on its own fails."""
        if len(rows) == 1:
            for row in self.run(rows):
                error = self.errors[row.row]
                self.fail(row, _kind_of(error), error)
            return
        self.halved += 1
        middle = len(rows) // 2
        for half in (rows[:middle], rows[middle:]):
            left = self.run(half)
            if left:
                self.run_in_halves(left)

    def fail(self, source: EncodedPrompt, kind: str, error: BaseException) -> None:
        self.outcomes[source.row] = self.model._failed(source.prompt.custom_id, kind, error)


def _kind_of(error: BaseException) -> str:
    return OUT_OF_MEMORY if is_out_of_memory(error) else MODEL_FAILED


def _without_row(completion: Completion) -> dict[str, Any]:
    """Make the record of a pipeline's row, which has no number and may have no name."""
    return replace(completion, row=None, custom_id=completion.custom_id or None).as_dict()


class _Turns:
    """A shared/exclusive lock. A thread that waits for exclusive use goes before later arrivals."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._wanting = 0

    @contextmanager
    def shared(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._wanting)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            self._wanting += 1
            self._changed.wait_for(lambda: not self._inside)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._wanting -= 1
                self._inside -= 1
                self._changed.notify_all()


_loaded: WeakValueDictionary[str, LoadedModel] = WeakValueDictionary()
_loading: dict[str, threading.Lock] = {}
_lock = threading.Lock()


def loaded_model(config: InferenceConfig, model_id: str, stamp: str = "") -> LoadedModel:
    """Return the model of a config: the one already loaded in this process, or a new one.

    Args:
        stamp: distinguishes versions at the same path.

    Raises:
        InferenceError: the model cannot be found or loaded.
    """
    key = json.dumps([config.merged(), model_id, stamp], sort_keys=True, default=str)
    with _lock:
        loading = _loading.setdefault(key, threading.Lock())
    with loading:
        model = _loaded.get(key)
        if model is None:
            started = time.perf_counter()
            llm = LLM(config)
            model = LoadedModel(llm, model_id, time.perf_counter() - started)
            _loaded[key] = model
        return model


def _seeded_by_name(source: EncodedPrompt) -> EncodedPrompt:
    """Derive the row's seed from its name, because its position in a batch is arbitrary."""
    name = source.prompt.custom_id
    if source.prompt.settings.get("seed") is not None:
        return source
    return replace(source, seed_row=zlib.crc32(name.encode("utf-8", "surrogatepass")) if name else 0)


def check_settings(settings: Mapping[str, Any] | None) -> None:
    """Check generation settings.

    Raises:
        ConfigError: one is unknown or impossible; the message names the nearest known one.
    """
    if settings is None:
        return
    if not isinstance(settings, Mapping):
        raise ConfigError(f"inference_args must be a mapping of generation settings, got {type(settings).__name__}")
    try:
        GenerationConfig().updated(**settings)
    except InferenceError as error:
        raise ConfigError(f"inference_args: {error.what}", error.hint) from error
