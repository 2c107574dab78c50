"""An answer, or the want of one, as a line of output.

Knows forms; knows nothing about files or models.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

from inference.generation.text import Answer
from inference.jobs.feed import FailedRow

# What the samples of a prompt differ in.
SAMPLE_KEYS = ("text", "token_ids", "finish_reason", "completion_tokens", "seed", "logprobs")


def record(answer: Answer, model: str, echo: bool = True) -> dict[str, Any]:
    """One answer as the JSON object of a line of output. Times are in seconds.

    Args:
        echo: with the prompt.
    """
    request, source = answer.request, answer.source
    timing = request.timing
    row: dict[str, Any] = {
        "custom_id": source.prompt.custom_id,
        "row": source.row,
        **({"prompt": source.text} if echo else {}),
        "text": answer.text,
        "token_ids": list(request.output_ids),
        "finish_reason": request.finish_reason.value if request.finish_reason else None,
        "prompt_tokens": request.num_prompt_tokens,
        "completion_tokens": len(request.output_ids),
        "ttft_seconds": _rounded(timing.ttft),
        "total_seconds": _rounded(timing.total),
        "model": model,
        "error": None,
    }
    if not source.generation.greedy:
        row["seed"] = request.seed
    if answer.samples:
        row["samples"] = [_sample(sample) for sample in answer.samples]
    if source.truncated:
        row["truncated_tokens"] = source.truncated
    if source.generation.logprobs is not None:
        row["logprobs"] = [
            {"token_id": item.token_id, "logprob": item.logprob, "top": [list(pair) for pair in item.top]}
            for item in request.logprobs
        ]
    return row


def _sample(answer: Answer) -> dict[str, Any]:
    """One of several answers to a prompt; the record's own fields are the first one's."""
    made = record(dataclasses.replace(answer, samples=[]), "", echo=False)
    return {key: made[key] for key in SAMPLE_KEYS if key in made}


def error_record(failed: FailedRow, model: str, echo: bool = True) -> dict[str, Any]:
    """The same keys for a row without an answer, and the line of the input that it is on."""
    return {
        "custom_id": failed.custom_id,
        "row": failed.row,
        **({"prompt": None} if echo else {}),
        "text": None,
        "token_ids": None,
        "finish_reason": "error",
        "prompt_tokens": None,
        "completion_tokens": None,
        "ttft_seconds": None,
        "total_seconds": None,
        "model": model,
        "error": {"type": failed.kind, "message": failed.message, "line": failed.line},
    }


def render_json(answer: Answer | FailedRow, model: str, echo: bool) -> str:
    made = error_record(answer, model, echo) if isinstance(answer, FailedRow) else record(answer, model, echo)
    line = json.dumps(made, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can name and UTF-8 cannot hold
        line = json.dumps(made)
    return line


def render_mindformers(answer: Answer | FailedRow, model: str, echo: bool) -> str:
    """MindFormers' result: the prompt and its answer as one text, in a list; an empty list for a row without one."""
    texts = [] if isinstance(answer, FailedRow) else [answer.source.full_text(text) for text in answer.texts]
    return json.dumps({"text_generation_text": texts}, ensure_ascii=False)


def render_text(answer: Answer | FailedRow, model: str, echo: bool) -> str | None:
    """The answer, after its prompt with `echo`; None for a row without one."""
    if isinstance(answer, FailedRow):
        return None
    return "\n".join((answer.source.heading if echo else "") + text for text in answer.texts)


RENDERERS: dict[str, Callable[[Answer | FailedRow, str, bool], str | None]] = {
    "json": render_json,
    "mindformers": render_mindformers,
    "text": render_text,
}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
