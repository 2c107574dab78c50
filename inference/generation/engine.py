"""The engine: takes requests, runs steps, and chooses tokens; rows join and leave the batch at every step.

Knows token ids; knows nothing about text, files or terminals.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator

import numpy as np

from inference.errors import InferenceError, InputError
from inference.generation.sampler import choose, needs_logits, token_logprob
from inference.metrics import RunMetrics
from inference.models.runner import StepModel
from inference.models.step import SequenceStep, StepBatch
from inference.request import FinishReason, Request
from inference.scheduler import Scheduled, Scheduler


class Engine:
    """Runs requests on a model until each has its answer.

    Args:
        model: gives the logits of a step.
        max_sequences: the most rows in a step.
        max_batch_tokens: the most tokens in a step; longer prompts go in chunks.
        prefix_cache: requests that begin alike share the blocks of that beginning, also with those of earlier engines.
        metrics: counts what is done.
    """

    def __init__(
        self,
        model: StepModel,
        *,
        max_sequences: int = 64,
        max_batch_tokens: int = 2048,
        prefix_cache: bool = True,
        metrics: RunMetrics | None = None,
    ):
        self.model = model
        self.metrics = metrics or RunMetrics()
        self._scheduler = Scheduler(model.blocks, max_sequences, max_batch_tokens, prefix_cache)

    @property
    def busy(self) -> bool:
        """Whether any request is not finished."""
        return self._scheduler.busy

    @property
    def num_running(self) -> int:
        return len(self._scheduler.running)

    @property
    def num_waiting(self) -> int:
        return len(self._scheduler.waiting)

    @property
    def max_sequences(self) -> int:
        """The most rows in a step."""
        return self._scheduler.max_sequences

    @property
    def kv_use(self) -> float:
        """The share of the KV cache's blocks that requests hold."""
        pool = self._scheduler.pool
        return 1 - pool.num_free / pool.capacity

    def add(self, request: Request) -> None:
        """Queues a request.

        Raises:
            InputError: an empty prompt, or more tokens than the context or the cache can hold.
        """
        length = len(request.prompt_ids) + request.max_new_tokens
        if not request.prompt_ids:
            raise InputError(f"request {request.request_id}: the prompt has no tokens")
        if length > self.model.context_length or request.max_new_tokens < 1:
            raise InputError(
                f"request {request.request_id}: a prompt of {len(request.prompt_ids)} tokens and "
                f"{request.max_new_tokens} new ones do not fit a context of {self.model.context_length}"
            )
        self._scheduler.add(request)
        seed = request.generation.seed
        request.seed = secrets.randbits(64) if seed is None else seed

    def finish(self, request: Request, reason: FinishReason) -> None:
        """Ends a request from outside: a stop string was seen, or the caller let go of it."""
        if not request.finished:
            self._leave(request, reason)

    def close(self) -> None:
        """Lets go of every request that is not finished, and of its blocks."""
        for request in [*self._scheduler.running, *self._scheduler.waiting]:
            self.finish(request, FinishReason.CANCELLED)

    def step(self) -> list[Request]:
        """Runs one step; the requests that got a token in it, some of them finished by it."""
        started = time.perf_counter()
        planned = self._scheduler.plan()
        copies = [item.copy for item in planned if item.copy]
        if copies:
            self.model.copy_blocks(copies)
        full = [row for row, item in enumerate(planned) if item.reaches_end and needs_logits(item.request)]
        sequences = [_sequence(item) for item in planned]
        result = self.model.step(StepBatch.build(sequences, self.model.block_size, logit_rows=full))
        logits = dict(zip(full, result.logits, strict=True))
        ready = []
        for row, item in enumerate(planned):
            at_end = item.reaches_end
            self._scheduler.advance(item)
            if at_end:
                self._take_token(item.request, int(result.best[row]), logits.get(row))
                ready.append(item.request)
        tokens = sum(item.count for item in planned)
        self.metrics.step(time.perf_counter() - started, tokens, len(ready))
        return ready

    def run(self) -> Iterator[Request]:
        """Steps until nothing is left; yields each request as it finishes."""
        while self.busy:
            for request in self.step():
                if request.finished:
                    yield request

    def _take_token(self, request: Request, best: int, logits: np.ndarray | None) -> None:
        """Appends the next token: the best, or one chosen from the logits where the request needs them."""
        generation = request.generation
        if best < 0:
            raise InferenceError(
                f"the model gave logits that are no numbers for request {request.request_id}",
                "the checkpoint is damaged, or its config is another model's",
            )
        token = best if logits is None else choose(logits, request)
        if generation.logprobs is not None and logits is not None:
            request.logprobs.append(token_logprob(logits, token, generation.logprobs))
        request.append(token)
        if not generation.use_past:
            request.num_cached = 0
        if token in generation.eos_token_id and not generation.ignore_eos:
            self._leave(request, FinishReason.STOP)
        elif len(request.output_ids) >= request.max_new_tokens:
            self._leave(request, FinishReason.LENGTH)

    def _leave(self, request: Request, reason: FinishReason) -> None:
        request.finish(reason)
        self._scheduler.finish(request)
        self.metrics.finished(request)


def _sequence(item: Scheduled) -> SequenceStep:
    request = item.request
    return SequenceStep(request.tokens(request.num_cached, item.count), request.num_cached, request.block_table)
