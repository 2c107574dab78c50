"""Builds request bodies from prompts and reads answers from responses, in OpenAI's formats.

Knows these formats; knows nothing about connections. Every part of a response is checked before it is used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from inference.errors import InputError
from inference.inputs.prompts import Prompt
from inference.remote.endpoint import Endpoint

# Generation settings and OpenAI's names for them. Endpoints need not support any other setting.
NAMES = {
    "max_new_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "stop": "stop",
    "seed": "seed",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
}


class ResponseError(Exception):
    """The response is not a valid answer. A retry may get one."""


@dataclass(frozen=True)
class Reply:
    """The contents of a response; a count is None if the response does not have it."""

    text: str
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    model: str


def request_body(endpoint: Endpoint, prompt: Prompt, settings: Mapping[str, Any]) -> bytes:
    """Build the body of a request.

    Args:
        settings: generation settings for all prompts; the prompt's own settings override them.

    Raises:
        InputError: the endpoint cannot answer this prompt or does not know a setting.
    """
    body: dict[str, Any] = {"model": endpoint.model, **_content(endpoint, prompt)}
    given = {**settings, **prompt.settings}
    if given.pop("do_sample", None) is False:
        given["temperature"] = 0
    given.pop("num_return_sequences", None)
    for name, value in given.items():
        if name not in NAMES:
            raise InputError(
                f"{prompt.where}: the endpoint has no setting '{name}'",
                f"known: {', '.join(NAMES)}; put others into the endpoint's 'extra'",
            )
        body[NAMES[name]] = list(value) if isinstance(value, tuple) else value
    return json.dumps({**body, **endpoint.extra}, ensure_ascii=False).encode("utf-8", "replace")


def _content(endpoint: Endpoint, prompt: Prompt) -> dict[str, Any]:
    if prompt.chat:
        raise InputError(f"{prompt.where}: '{next(iter(prompt.chat))}' is not sent to an endpoint", "leave it out")
    if endpoint.api == "chat":
        if prompt.token_ids is not None:
            raise InputError(f"{prompt.where}: a chat endpoint does not accept token ids", "give a text or messages")
        return {"messages": list(prompt.messages or [{"role": "user", "content": prompt.text}])}
    if prompt.messages is not None:
        raise InputError(f"{prompt.where}: a completions endpoint does not accept messages", "set api to chat")
    return {"prompt": prompt.text if prompt.token_ids is None else list(prompt.token_ids)}


def read_reply(endpoint: Endpoint, data: bytes) -> Reply:
    """Read the answer from a response.

    Raises:
        ResponseError: the response is not an answer.
    """
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        raise ResponseError(f"the response is not JSON: {_shown(endpoint, data)}") from None
    if not isinstance(body, dict):
        raise ResponseError(f"the response is not a JSON object: {_shown(endpoint, data)}")
    if body.get("error"):
        raise ResponseError(f"the response is an error: {error_message(endpoint, data)}")
    choices = body.get("choices")
    if not isinstance(choices, list) or len(choices) != 1:
        count = len(choices) if isinstance(choices, list) else "no"
        raise ResponseError(f"the response has {count} choices for one prompt")
    choice = choices[0]
    text = _text(endpoint, choice)
    usage = body.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    reason = choice.get("finish_reason")
    return Reply(
        text,
        endpoint.redacted(reason) if isinstance(reason, str) else None,
        _count(usage.get("prompt_tokens")),
        _count(usage.get("completion_tokens")),
        endpoint.redacted(body["model"]) if isinstance(body.get("model"), str) else endpoint.model,
    )


def error_message(endpoint: Endpoint, data: bytes) -> str:
    """Return the message of an error response, in OpenAI's or any other format; shortened, and without the key."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        return _shown(endpoint, data)
    error = body.get("error", body) if isinstance(body, dict) else body
    message = error.get("message") if isinstance(error, dict) else error
    whole = message if isinstance(message, str) else json.dumps(error)
    return _shown(endpoint, whole.encode("utf-8", "replace"))


def _text(endpoint: Endpoint, choice: Any) -> str:
    if not isinstance(choice, dict):
        raise ResponseError("the response has a choice that is not an object")
    if endpoint.api == "completions":
        text = choice.get("text")
    else:
        message = choice.get("message")
        text = message.get("content") if isinstance(message, dict) else None
    if not isinstance(text, str):
        raise ResponseError("the response has a choice without a text")
    return text


def _count(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _shown(endpoint: Endpoint, data: bytes) -> str:
    # Remove the key before shortening, or part of it could remain.
    text = " ".join(endpoint.redacted(data.decode("utf-8", "replace")).split())
    return f"{text[:200]}..." if len(text) > 200 else text or "(nothing)"
