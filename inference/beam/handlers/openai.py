"""`OpenAIModelHandler`: Beam's RemoteModelHandler for any OpenAI-compatible endpoint.

Beam retries and dead-letters whole batches. Here each row is retried alone, and the record of a failed row has the
reason. Knows Beam's handler interface; knows nothing about HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from apache_beam.ml.inference.base import ModelHandler, PredictionResult, RateLimitExceeded, RemoteModelHandler

from inference.answering.elements import prompt_from
from inference.answering.shared_model import Answers
from inference.beam.handlers.answer_metrics import AnswerMetrics
from inference.beam.handlers.prompt_handler import PromptHandler
from inference.beam.serving.hot_swap import Reply
from inference.errors import InputError
from inference.generation.record import Completion, ErrorRecord
from inference.inputs.prompts import Prompt
from inference.remote import Client, Endpoint, RemoteAnswer, RemoteFailure
from inference.remote.client import BAD_ROW

NAMESPACE = "BeamML_OpenAI"
# Rows of a batch per concurrent request. Connections idle at the end of a batch, so batches should not be small.
BATCH_OF_CONCURRENT = 8


class OpenAIModelHandler(PromptHandler, RemoteModelHandler[Any, PredictionResult, Client]):
    """Answers prompts through an endpoint.

    Elements and results are those of `MindSporeModelHandler`: a text, token ids (completions only), a mapping with
    `prompt` or `messages`, or another PredictionResult; and a record with `text`, `finish_reason`, counts, times, and
    `error`. All rows and threads of a worker process share the endpoint's limits.

    Args:
        endpoint: an `Endpoint`, or a mapping of its keys.
        model_id: name of the model in results; by default the endpoint's name for it.
        check: check now that the API key is set. Turn this off if only the workers have the key.
        min_batch_size: rows; by default eight times the endpoint's `concurrency`.
        max_batch_size: rows.
        max_batch_duration_secs: longest time that a row may wait for others, across bundles.
        rate_limiter: Beam's rate limiter, for a limit that all workers share; a batch that it rejects is retried.
        prepare: makes an example from an element. If it raises, that row fails.

    Raises:
        ConfigError: the endpoint is invalid, or its key is missing.
    """

    namespace = NAMESPACE

    def __init__(
        self,
        endpoint: Endpoint | Mapping[str, Any],
        *,
        model_id: str | None = None,
        check: bool = True,
        min_batch_size: int | None = None,
        max_batch_size: int | None = None,
        max_batch_duration_secs: int | None = None,
        rate_limiter: Any = None,
        prepare: Callable[[Any], Any] | None = None,
    ):
        self.prepare = prepare
        self._endpoint = endpoint if isinstance(endpoint, Endpoint) else Endpoint.from_mapping(endpoint)
        if check:
            self._endpoint.check_key()
        super().__init__(
            NAMESPACE,
            num_retries=self._endpoint.max_retries,
            retry_filter=_is_rate_limit,
            rate_limiter=rate_limiter,
        )
        wanted = BATCH_OF_CONCURRENT * self._endpoint.concurrency
        # Beam's RemoteModelHandler accepts no batch sizes and does not call an __init__ that does.
        ModelHandler.__init__(
            self,
            min_batch_size=min_batch_size or min(wanted, max_batch_size or wanted),
            max_batch_size=max_batch_size,
            max_batch_duration_secs=max_batch_duration_secs,
        )
        self._model_id = model_id or self._endpoint.model

    def create_client(self) -> Client:
        return Client(self._endpoint)

    def request(
        self, batch: Sequence[Any], model: Client, inference_args: dict[str, Any] | None = None
    ) -> Iterable[PredictionResult]:
        """Answer a batch: one result per row, in order."""
        started = time.perf_counter()
        prompts = [_prompt_or_failure(example) for example in self._examples(batch)]
        to_ask = [item for item in prompts if isinstance(item, Prompt)]
        asked = iter(model.answer_all(to_ask, inference_args, self._note))
        if self.notes is not None:
            self.notes.flush()
        records = [self._record(item, next(asked) if isinstance(item, Prompt) else item) for item in prompts]
        self._count(records, time.perf_counter() - started)
        return [
            PredictionResult(example, record, self._model_id) for example, record in zip(batch, records, strict=True)
        ]

    def _note(self, prompt: Prompt, outcome: RemoteAnswer | RemoteFailure) -> None:
        if self.notes is not None and isinstance(outcome, RemoteAnswer):
            self.notes.add(self._record(prompt, outcome))

    def _record(self, source: Prompt | RemoteFailure, outcome: RemoteAnswer | RemoteFailure) -> dict[str, Any]:
        name = source.custom_id if isinstance(source, Prompt) else None
        record = Completion(
            custom_id=name or None,
            prompt=source.text if isinstance(source, Prompt) else None,
            model=self._model_id,
            attempts=outcome.attempts,
        )
        if isinstance(outcome, RemoteFailure):
            error = ErrorRecord(outcome.kind, outcome.message)
            return replace(record, finish_reason="error", error=error).as_dict()
        reply = outcome.reply
        return replace(
            record,
            text=reply.text,
            finish_reason=reply.finish_reason,
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
            total_seconds=round(outcome.seconds, 6),
        ).as_dict()

    def _count(self, records: Sequence[Mapping[str, Any]], seconds: float) -> None:
        counts = ("prompt_tokens", "completion_tokens", "cached_tokens")
        known = [{**record, **{key: record[key] or 0 for key in counts}} for record in records]
        AnswerMetrics(self._namespace).update(Reply(Answers(known), self._model_id, "", []), seconds)


def _is_rate_limit(error: Exception) -> bool:
    return isinstance(error, RateLimitExceeded)


def _prompt_or_failure(example: Any) -> Prompt | RemoteFailure:
    try:
        return prompt_from(example)
    except InputError as error:
        return RemoteFailure(BAD_ROW, str(error), 0)
