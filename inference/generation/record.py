"""The record of an answer: one dataclass for all callers and outputs.

Python callers get it as an object; the command line, save files and pipelines write it as JSON (`as_dict`). A field
added here appears in all of them. Knows answers; knows nothing about files or output formats.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

from inference.config.secrets import hide_secrets
from inference.engine.request import FinishReason, TokenLogprob
from inference.errors import InferenceError, InputError
from inference.generation.message import TOOL_CALLS, read_message
from inference.generation.text import Answer, EncodedPrompt

# Why a row has no answer. Remote endpoints add their own kinds (`inference.remote`).
BAD_ROW = "bad_row"
MODEL_FAILED = "model_failed"
OUT_OF_MEMORY = "out_of_memory"
# An earlier row has the same custom_id.
DUPLICATE = "duplicate_id"


def _only_if_given() -> Any:
    """Declares a field that JSON leaves out if it is None."""
    return field(default=None, metadata={"only_if_given": True})


@dataclass(frozen=True)
class ErrorRecord:
    """Why a row has no answer.

    Args:
        type: one of the kinds above.
        message: one line.
        line: line of the input file, from 1; None if the row is not from a file.
    """

    type: str
    message: str
    line: int | None = None

    def __str__(self) -> str:
        return self.message

    def as_dict(self) -> dict[str, Any]:
        return {"type": self.type, "message": self.message, "line": self.line}


@dataclass(frozen=True)
class Completion:
    """An answer, or the error of a row that has none. Unknown values are None.

    Args:
        custom_id: name of the row, or its number if it has no name.
        row: index of the row in the input, from 0.
        prompt: the prompt as the model sees it; the rendered template for a chat.
        text: the decoded `token_ids`, without special tokens, the stop string, the reasoning and tool calls.
        token_ids: every generated token, including the one that ended the answer.
        finish_reason: `stop`, `length`, `tool_calls`, or `error`.
        prompt_tokens: length of the prompt in tokens.
        completion_tokens: length of `token_ids`.
        cached_tokens: tokens of the prompt that were found in the prefix cache.
        ttft_seconds: from the arrival of the row in the engine to its first token.
        total_seconds: from the arrival of the row to its last token.
        model: name of the model.
        error: why the row has no answer.
        seed: the seed, if the answer was sampled.
        truncated_tokens: tokens that were cut from the prompt to fit the context.
        logprobs: one entry per token of `token_ids`, if requested.
        samples: every answer to the prompt, this one first, if several were requested; JSON has only the fields that
            differ (`SAMPLE_FIELDS`).
        attempts: requests sent to a remote endpoint for this row.
        reasoning: the reasoning of a chat model before its answer, if it is marked with <think>.
        tool_calls: the calls in the answer, in OpenAI's format, if the row offers tools in OpenAI's format.
        value: the result of a model that does not answer in text (pipelines).
        input_digest: identifies the content of the input row in a later run, if the row has no name.
    """

    custom_id: str | None
    row: int | None = _only_if_given()
    prompt: str | None = None
    text: str | None = None
    token_ids: tuple[int, ...] | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    ttft_seconds: float | None = None
    total_seconds: float | None = None
    model: str | None = None
    error: ErrorRecord | None = None
    seed: int | None = _only_if_given()
    truncated_tokens: int | None = _only_if_given()
    logprobs: tuple[TokenLogprob, ...] | None = _only_if_given()
    samples: tuple[Completion, ...] | None = _only_if_given()
    attempts: int | None = _only_if_given()
    reasoning: str | None = _only_if_given()
    tool_calls: tuple[dict[str, Any], ...] | None = _only_if_given()
    value: Any = _only_if_given()
    input_digest: str | None = _only_if_given()

    @property
    def index(self) -> int | None:
        """The index of the prompt among those given: the same as `row`."""
        return self.row

    def as_dict(self, echo: bool = True) -> dict[str, Any]:
        """Returns the record for JSON.

        Args:
            echo: include the prompt.
        """
        values = {item.name: getattr(self, item.name) for item in _FIELDS}
        if not echo:
            del values["prompt"]
        values["token_ids"] = None if self.token_ids is None else list(self.token_ids)
        values["error"] = None if self.error is None else self.error.as_dict()
        values["tool_calls"] = None if self.tool_calls is None else list(self.tool_calls)
        values["logprobs"] = None if self.logprobs is None else [_logprob_dict(item) for item in self.logprobs]
        if self.samples is not None:
            values["samples"] = [
                {name: value for name, value in sample.as_dict().items() if name in SAMPLE_FIELDS}
                for sample in self.samples
            ]
        return {name: value for name, value in values.items() if value is not None or name not in _ONLY_IF_GIVEN}


_FIELDS = fields(Completion)
_ONLY_IF_GIVEN = {item.name for item in _FIELDS if item.metadata.get("only_if_given")}
# The fields in which the samples of a prompt differ.
SAMPLE_FIELDS = ("text", "token_ids", "finish_reason", "completion_tokens", "seed", "logprobs", "tool_calls")
FIELD_NAMES = tuple(item.name for item in _FIELDS)


def completion_of(answer: Answer, model: str) -> Completion:
    """Makes the record of a finished answer."""
    source, request = answer.source, answer.request
    timing = request.timing
    message: dict[str, Any] = {"content": answer.text}
    reasoning = None
    if source.is_chat:
        message, reasoning = read_message(source, answer.text)
    calls = message.get("tool_calls")
    reason = request.finish_reason.value if request.finish_reason else None
    return Completion(
        custom_id=source.prompt.custom_id,
        row=source.row,
        prompt=source.text,
        text=message["content"] or "",
        token_ids=tuple(request.output_ids),
        finish_reason=TOOL_CALLS if calls and request.finish_reason is FinishReason.STOP else reason,
        prompt_tokens=request.num_prompt_tokens,
        completion_tokens=len(request.output_ids),
        cached_tokens=request.num_reused,
        ttft_seconds=_rounded(timing.ttft),
        total_seconds=_rounded(timing.total),
        model=model,
        seed=None if source.generation.greedy else request.seed,
        truncated_tokens=source.truncated or None,
        logprobs=None if source.generation.logprobs is None else tuple(request.logprobs),
        samples=tuple(completion_of(replace(item, samples=[]), model) for item in answer.samples) or None,
        input_digest=source.prompt.digest,
        reasoning=reasoning,
        tool_calls=tuple(calls) if calls else None,
    )


def failed_completion(
    custom_id: str | None,
    row: int | None,
    kind: str,
    message: str,
    *,
    line: int | None = None,
    prompt: str | None = None,
    model: str | None = None,
    attempts: int | None = None,
    input_digest: str | None = None,
) -> Completion:
    """Makes the record of a row without an answer; secrets of the environment are masked in its message."""
    return Completion(
        custom_id,
        row,
        prompt,
        finish_reason="error",
        model=model,
        error=ErrorRecord(kind, hide_secrets(message), line),
        attempts=attempts,
        input_digest=input_digest,
    )


def failure_of(source: EncodedPrompt, error: InferenceError) -> Completion:
    """Makes the record of an encoded prompt that the engine refused or failed on."""
    prompt = source.prompt
    name, _, line = prompt.where.rpartition(":")
    return failed_completion(
        prompt.custom_id,
        source.row,
        kind_of(error),
        f"{prompt.where}: {error}",
        line=int(line) if name and line.isdecimal() else None,
        input_digest=prompt.digest,
    )


def kind_of(error: BaseException) -> str:
    """Returns the kind of an error: caused by the row or by the model."""
    return BAD_ROW if isinstance(error, InputError) else MODEL_FAILED


def _logprob_dict(item: TokenLogprob) -> dict[str, Any]:
    return {"token_id": item.token_id, "logprob": item.logprob, "top": [list(pair) for pair in item.top]}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
