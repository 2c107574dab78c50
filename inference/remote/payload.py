"""A prompt as the body of a request, and the body of a response as an answer, in OpenAI's forms.

Knows these forms; knows nothing about connections. What comes back is believed only as far as it was checked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from inference.errors import InputError
from inference.inputs.prompts import Prompt
from inference.remote.endpoint import Endpoint

# Our settings by OpenAI's names; what is not here no endpoint has to understand.
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
    """A response that is not what was asked for: the endpoint's fault, and perhaps not the next time."""


@dataclass(frozen=True)
class Reply:
    """What a response says; counts are None where it does not say."""

    text: str
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    model: str


def request_body(endpoint: Endpoint, prompt: Prompt, settings: Mapping[str, Any]) -> bytes:
    """The body that asks for an answer.

    Args:
        settings: of generation, by our names; the prompt's own outrank them.

    Raises:
        InputError: what the endpoint cannot be asked for.
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
                f"known: {', '.join(NAMES)}; others go into 'extra' of the endpoint",
            )
        body[NAMES[name]] = list(value) if isinstance(value, tuple) else value
    return json.dumps({**body, **endpoint.extra}, ensure_ascii=False).encode("utf-8", "replace")


def _content(endpoint: Endpoint, prompt: Prompt) -> dict[str, Any]:
    if endpoint.api == "chat":
        if prompt.token_ids is not None:
            raise InputError(f"{prompt.where}: a chat endpoint takes no token ids", "give a text or messages")
        return {"messages": list(prompt.messages or [{"role": "user", "content": prompt.text}])}
    if prompt.messages is not None:
        raise InputError(f"{prompt.where}: a completions endpoint takes no messages", "set api to chat")
    return {"prompt": prompt.text if prompt.token_ids is None else list(prompt.token_ids)}


def read_reply(endpoint: Endpoint, data: bytes) -> Reply:
    """The answer in a response.

    Raises:
        ResponseError: it is no answer to a request for one.
    """
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        raise ResponseError(f"the response is not JSON: {_shown(data)}") from None
    if not isinstance(body, dict):
        raise ResponseError(f"the response is no object: {_shown(data)}")
    if body.get("error"):
        raise ResponseError(f"the response is an error: {error_message(data)}")
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
        reason if isinstance(reason, str) else None,
        _count(usage.get("prompt_tokens")),
        _count(usage.get("completion_tokens")),
        body["model"] if isinstance(body.get("model"), str) else endpoint.model,
    )


def error_message(data: bytes) -> str:
    """What an error response says, in OpenAI's form or any other, short."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        return _shown(data)
    error = body.get("error", body) if isinstance(body, dict) else body
    message = error.get("message") if isinstance(error, dict) else error
    return _shown((message if isinstance(message, str) else json.dumps(error)).encode("utf-8", "replace"))


def _text(endpoint: Endpoint, choice: Any) -> str:
    if not isinstance(choice, dict):
        raise ResponseError("the response has a choice that is no object")
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


def _shown(data: bytes) -> str:
    text = " ".join(data.decode("utf-8", "replace").split())
    return f"{text[:200]}..." if len(text) > 200 else text or "(nothing)"
