"""The engine: takes requests, runs steps and chooses tokens. Rows can join and leave the batch at every step.

Knows token ids; knows nothing about text, files or terminals.
"""

from __future__ import annotations

import itertools
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

import numpy as np

from inference.engine.metrics import RunMetrics
from inference.engine.request import FinishReason, Request
from inference.engine.sampler import SEED_BITS, choose, needs_logits, seed_of, token_logprob
from inference.engine.scheduler import Scheduled, Scheduler
from inference.engine.speculation import Speculation
from inference.errors import GenerationError, InferenceError, InputError, is_out_of_memory
from inference.models.runner import StepModel
from inference.models.step import SequenceStep, StepBatch

Event = TypeVar("Event")
EventOf = TypeVar("EventOf", covariant=True)


class Row(Protocol[EventOf]):
    """A request, and how its tokens become events."""

    @property
    def request(self) -> Request: ...

    def advance(self, engine: BaseEngine) -> EventOf:
        """Takes the new tokens: one, or more if guesses were right. May end the request."""
        ...


class BaseEngine(ABC):
    """Base of all engines: takes requests, generates their tokens step by step, and counts metrics.

    Attributes:
        context_length: maximum number of tokens of a prompt and its answer together.
        max_sequences: maximum number of rows that run together.
        metrics: the metrics of the work done.
    """

    def __init__(self, context_length: int, max_sequences: int, metrics: RunMetrics | None = None):
        self.context_length, self.max_sequences = context_length, max_sequences
        self.metrics = metrics or RunMetrics()

    @property
    @abstractmethod
    def num_running(self) -> int: ...

    @property
    @abstractmethod
    def num_waiting(self) -> int: ...

    @property
    @abstractmethod
    def kv_use(self) -> float:
        """Share of the KV cache that requests hold."""

    @property
    def busy(self) -> bool:
        """Whether any request is not finished."""
        return self.num_running + self.num_waiting > 0

    @abstractmethod
    def step(self) -> list[Request]:
        """Runs one step; returns the requests that got a token, including finished ones, and those that failed.

        Raises:
            InferenceError: no request can continue.
        """

    @abstractmethod
    def finish(self, request: Request, reason: FinishReason) -> None:
        """Ends a request early: a stop string was found, or the caller cancelled it."""

    @abstractmethod
    def close(self) -> None:
        """Cancels every unfinished request and releases its resources."""

    def add(self, request: Request) -> None:
        """Queues a request.

        Raises:
            InputError: the prompt is empty, or there are more tokens than the context or the cache can hold.
        """
        length = len(request.prompt_ids) + request.max_new_tokens
        if not request.num_prompt_tokens or not request.prompt_ids:
            raise InputError(f"request {request.request_id}: the prompt has no tokens")
        if request.source_length > self.context_length:
            raise InputError(
                f"request {request.request_id}: a prompt of {request.source_length} tokens does not fit a context of "
                f"{self.context_length}"
            )
        if length > self.context_length or request.max_new_tokens < 1:
            raise InputError(
                f"request {request.request_id}: a prompt of {len(request.prompt_ids)} tokens and "
                f"{request.max_new_tokens} new ones do not fit a context of {self.context_length}"
            )
        self._queue(request)
        seed = request.generation.seed
        request.seed = secrets.randbits(SEED_BITS) if seed is None else seed_of(seed, request.row, request.sample)

    @abstractmethod
    def _queue(self, request: Request) -> None:
        """Queues a request that fits the context."""

    def fail(self, request: Request, error: Exception) -> None:
        """Ends a request with an error, without affecting any other."""
        if isinstance(error, InferenceError):
            request.error = GenerationError(error.what, error.hint)
        else:
            request.error = GenerationError(f"request {request.request_id}: {type(error).__name__}: {error}")
        self.finish(request, FinishReason.ERROR)
        # Set the reason again: the request may have finished already, with the token that caused the error.
        request.finish_reason = FinishReason.ERROR

    def cut(self, request: Request, length: int) -> None:
        """Drops the tokens that a request generated after its first `length`, which completed a stop string."""
        dropped = len(request.output_ids) - length
        del request.output_ids[length:], request.logprobs[length:]
        if request.finished:
            self.metrics.completion_tokens -= dropped

    def advance(self, row: Row[Event]) -> Event | None:
        """Returns a row's event for its new tokens; None if it has failed, with the reason in its request's `error`."""
        if row.request.error is None:
            try:
                return row.advance(self)
            except Exception as error:  # any error belongs to this row alone
                self.fail(row.request, error)
        return None

    def run(self) -> Iterator[Request]:
        """Runs steps until no request is left; yields each request as it finishes."""
        while self.busy:
            for request in self.step():
                if request.finished:
                    yield request

    def _append(self, request: Request, token: int) -> None:
        """Appends a request's next token, and finishes the request if it is the last."""
        request.append(token)
        if token in request.generation.eos_token_id and not request.generation.ignore_eos:
            self.finish(request, FinishReason.STOP)
        elif len(request.output_ids) >= request.max_new_tokens:
            self.finish(request, FinishReason.LENGTH)


class Engine(BaseEngine):
    """Runs requests on a model until each is answered.

    Args:
        model: computes the logits of a step.
        max_sequences: maximum number of rows in a step.
        max_batch_tokens: maximum number of tokens in a step; longer prompts are split into chunks.
        prefix_cache: requests with a common prefix share its blocks, even those of earlier engines.
        metrics: counts the work done.
        lookup: guess tokens from the row's own text; this does not change answers.

    Attributes:
        speculation: guesses tokens, and counts how many were right.
    """

    def __init__(
        self,
        model: StepModel,
        *,
        max_sequences: int = 64,
        max_batch_tokens: int = 2048,
        prefix_cache: bool = True,
        metrics: RunMetrics | None = None,
        lookup: bool = False,
    ):
        super().__init__(model.context_length, max_sequences, metrics)
        self.model = model
        self.speculation = Speculation(lookup)
        guess = self.speculation.guess
        self._scheduler = Scheduler(model.blocks, max_sequences, max_batch_tokens, prefix_cache, guess)

    @property
    def num_running(self) -> int:
        return len(self._scheduler.running)

    @property
    def num_waiting(self) -> int:
        return len(self._scheduler.waiting)

    @property
    def kv_use(self) -> float:
        """The share of the KV cache's blocks that requests hold."""
        pool = self._scheduler.pool
        return 1 - pool.num_free / pool.capacity

    def _queue(self, request: Request) -> None:
        self._scheduler.add(request)

    def finish(self, request: Request, reason: FinishReason) -> None:
        if not request.finished:
            request.finish(reason)
            if reason is FinishReason.ERROR:
                self._scheduler.discard(request)
            else:
                self._scheduler.finish(request)
            self.metrics.finished(request)

    def close(self) -> None:
        for request in [*self._scheduler.running, *self._scheduler.waiting]:
            self.finish(request, FinishReason.CANCELLED)

    def step(self) -> list[Request]:
        started, accepted = time.perf_counter(), self.speculation.accepted
        planned = self._scheduler.plan()
        copies = [item.copy for item in planned if item.copy]
        if copies:
            self.model.copy_blocks(copies)
        try:
            ready = self._advance(planned)
        except Exception as error:
            if _is_of_all(error):
                raise
            ready = self._advance_apart(planned)
        seconds, tokens = time.perf_counter() - started, sum(item.tokens for item in planned)
        guessed = sum(len(item.guesses) for item in planned)
        if tokens == len(ready) + guessed:
            self.speculation.cost.note(tokens, seconds)
        right = self.speculation.accepted - accepted
        # A wrong guess must not count as a prompt token.
        self.metrics.step(seconds, tokens - guessed + right, len(ready) + right)
        return ready

    def _advance(self, planned: Sequence[Scheduled]) -> list[Request]:
        """Computes a plan; returns the requests that got their next token. Changes nothing if it raises."""
        sources = [_source(item.request) for item in planned if item.encodes]
        if sources:
            self.model.encode(StepBatch.build(sources, self.model.block_size))
        # The rows of the step's logits that belong to each item: one, plus one for each guess.
        ends = list(itertools.accumulate(1 + len(item.guesses) for item in planned))
        rows = [range(end - 1 - len(item.guesses), end) for item, end in zip(planned, ends, strict=True)]
        full = [
            row
            for item, own in zip(planned, rows, strict=True)
            if item.reaches_end and needs_logits(item.request, len(item.guesses))
            for row in own
        ]
        sequences = [_sequence(item) for item in planned]
        result = self.model.step(StepBatch.build(sequences, self.model.block_size, logit_rows=full))
        logits = dict(zip(full, result.logits, strict=True))
        ready = []
        for item, own in zip(planned, rows, strict=True):
            at_end = item.reaches_end
            self._scheduler.advance(item)
            if at_end:
                try:
                    self._take_tokens(item, [(int(result.best[row]), logits.get(row)) for row in own])
                except Exception as error:  # any error belongs to this row alone
                    self.fail(item.request, error)
                ready.append(item.request)
        return ready

    def _take_tokens(self, item: Scheduled, found: Sequence[tuple[int, np.ndarray | None]]) -> None:
        """Appends the next token, and more tokens as long as each guess equals the chosen token."""
        request, right = item.request, 0
        self._take_token(request, *found[0])
        for guess, after in zip(item.guesses, found[1:], strict=True):
            if request.finished or request.output_ids[-1] != guess:
                break
            right += 1
            self._scheduler.advance(Scheduled(request, 1))
            self._take_token(request, *after)
        if item.guesses:
            self.speculation.note(request, len(item.guesses), right)

    def _advance_apart(self, planned: Sequence[Scheduled]) -> list[Request]:
        """Runs each row separately after the model failed on the whole batch, so that only the faulty rows fail.

        Raises:
            Exception: the model fails on every row.
        """
        ready: list[Request] = []
        failed: dict[Request, Exception] = {}
        for item in planned:
            try:
                ready += self._advance([item])
            except Exception as error:
                if _is_of_all(error):
                    raise
                failed[item.request] = error
        if len(failed) == len(planned):
            self.model.warm_up()
        for request, reason in failed.items():
            self.fail(request, reason)
        return [*ready, *failed]

    def _take_token(self, request: Request, best: int, logits: np.ndarray | None) -> None:
        """Appends the next token: the most likely one, or one sampled from the logits if the request needs them."""
        generation = request.generation
        if best < 0:
            raise GenerationError(
                f"the model gave logits that are not numbers for request {request.request_id}",
                "the checkpoint is damaged, or its config is another model's",
            )
        token = best if logits is None else choose(logits, request)
        if generation.logprobs is not None and logits is not None:
            request.logprobs.append(token_logprob(logits, token, generation.logprobs))
        if not generation.use_past:
            request.num_cached = 0
        self._append(request, token)


def _is_of_all(error: Exception) -> bool:
    """Returns whether the error stops all rows: a rank was lost, or memory ran out."""
    return isinstance(error, InferenceError) or is_out_of_memory(error)


def _sequence(item: Scheduled) -> SequenceStep:
    request = item.request
    tokens = [*request.tokens(request.num_cached, item.count), *item.guesses]
    source = None if request.source_ids is None else (request.source_table, request.source_length)
    return SequenceStep(tokens, request.num_cached, request.block_table, source, request.adapter, 1 + len(item.guesses))


def _source(request: Request) -> SequenceStep:
    assert request.source_ids is not None
    return SequenceStep(request.source_ids, 0, request.source_table, adapter=request.adapter)
