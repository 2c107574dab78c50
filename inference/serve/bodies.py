"""Parses the body of a generation request into prompts and settings: OpenAI's keys, vLLM's extensions, and our own.

Knows the keys of a body; knows nothing about tokens or the format of answers.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inference.config.generation import GenerationConfig
from inference.config.serve_settings import ServeSettings
from inference.errors import did_you_mean
from inference.inputs.openai_rows import OPENAI_NAMES, OPENAI_WITHOUT_EFFECT, TOOL_KEYS
from inference.inputs.prompts import CHAT_KEYS, Prompt, prompt_from_mapping
from inference.serve.errors import WHERE, RequestError

MOST_LOGPROBS = 20
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
# vLLM's names of settings, in addition to OpenAI's.
VLLM_NAMES = {"min_tokens": "min_new_tokens"}
# Keys that are read here, not by the layers below.
OWN_KEYS = ("model", "stream", "stream_options", "n", "best_of", "echo", "prompt", "messages")


@dataclass(frozen=True)
class Ask:
    """A parsed generation request.

    Args:
        name: the request's id, which its answer carries.
        prompts: the prompts; exactly one for a chat.
        model: name in the client's request; None for the server's own model.
        samples: number of answers per prompt.
        stream: send the text as it is generated.
        include_usage: end a stream with token counts.
        continuous_usage: include token counts in every chunk of a stream.
        echo: put the prompt before its answer.
        prompt_logprobs: report the log probabilities of the prompt, with this many of the most likely tokens.
        only_prompt: generate nothing.
    """

    name: str
    chat: bool
    prompts: tuple[Prompt, ...]
    model: str | None
    samples: int
    stream: bool
    include_usage: bool
    continuous_usage: bool
    echo: bool
    prompt_logprobs: int | None = None
    only_prompt: bool = False


def read_ask(body: Mapping[str, Any], path: str, settings: ServeSettings, models: Mapping[str, str]) -> Ask:
    """Parses a body.

    Args:
        models: adapter by the model name that clients use; "" for the base model.

    Raises:
        RequestError: a key is unknown, or a value is invalid.
        InputError: the layers below reject the prompt or the settings.
    """
    chat = path == CHAT
    _check_keys(body, chat)
    model = _text(body, "model")
    adapter = adapter_of(model, models)
    stream, options = _flag(body, "stream"), body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise RequestError(400, "stream_options must be an object", "stream_options")
    echo = _flag(body, "echo") and not chat
    prompt_logprobs = _whole(body, "logprobs", 0, MOST_LOGPROBS) if echo else None
    only_prompt = echo and body.get("max_tokens") == 0
    if only_prompt:
        # An engine generates at least one token, so this request does not use it.
        body = {**body, "max_tokens": 1, "stream": False}
        stream = False
    samples = _whole(body, "n", 1, settings.max_samples) or 1
    if (_whole(body, "best_of", 1, settings.max_samples) or samples) != samples:
        raise RequestError(400, "best_of must equal n: answers are not ranked here", "best_of")
    rest = {VLLM_NAMES.get(key, key): value for key, value in body.items() if key not in OWN_KEYS}
    if adapter:
        rest["adapter_id"] = adapter
    if samples > 1:
        rest["num_return_sequences"] = samples
    _check_length(body, settings)
    name = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
    contents = [{"messages": body.get("messages")}] if chat else [{"prompt": value} for value in _prompts(body)]
    if len(contents) > settings.max_prompts:
        raise RequestError(400, f"a request of {len(contents)} prompts; at most {settings.max_prompts}", "prompt")
    return Ask(
        name,
        chat,
        tuple(
            read_prompt({**content, **rest}, path, name, index if len(contents) > 1 else None)
            for index, content in enumerate(contents)
        ),
        model,
        samples,
        stream,
        bool(options.get("include_usage")) or bool(options.get("continuous_usage_stats")),
        bool(options.get("continuous_usage_stats")),
        echo,
        prompt_logprobs,
        only_prompt,
    )


def adapter_of(model: str | None, models: Mapping[str, str]) -> str:
    """Returns the adapter for a model name; "" for the base model.

    Raises:
        RequestError: status 404 if there is no model of that name.
    """
    if not model:
        return ""
    if model not in models:
        hint = did_you_mean(model, models) or f"it has: {', '.join(models)}"
        raise RequestError(404, f"this server has no model '{model[:200]}'; {hint}", "model", "model_not_found")
    return models[model]


def read_prompt(content: Mapping[str, Any], path: str, name: str, number: int | None = None) -> Prompt:
    """Reads a prompt and its settings.

    Args:
        number: position of the prompt in the request, if there are several.

    Raises:
        InputError: the prompt or the settings are invalid.
    """
    where = WHERE if number is None else f"{WHERE} {number}"
    return prompt_from_mapping({"custom_id": name, "url": path, "body": content}, where, name)


def _prompts(body: Mapping[str, Any]) -> Sequence[Any]:
    """Reads the prompts of a completion: a text, token ids, or a list of either."""
    prompt = body.get("prompt")
    several = isinstance(prompt, list) and bool(prompt) and all(isinstance(item, (str, list)) for item in prompt)
    return prompt if several else [prompt]  # type: ignore[return-value]


def _check_keys(body: Mapping[str, Any], chat: bool) -> None:
    known = known_keys(chat)
    for key in body:
        if key not in known:
            hint = did_you_mean(key, known) or "docs/serve.md lists the keys"
            raise RequestError(400, f"unknown key '{key[:200]}'; {hint}", key[:200], "unknown_parameter")


def known_keys(chat: bool) -> set[str]:
    """Returns every key that a body may have."""
    other = "prompt" if chat else "messages"
    taken = {"top_logprobs", *TOOL_KEYS, *CHAT_KEYS} if chat else set()
    known = {*GenerationConfig.model_fields, *OPENAI_NAMES, *OPENAI_WITHOUT_EFFECT, *VLLM_NAMES, *OWN_KEYS, *taken}
    return known - {other}


def _check_length(body: Mapping[str, Any], settings: ServeSettings) -> None:
    if settings.max_tokens is None:
        return
    for key in ("max_tokens", "max_completion_tokens", "max_new_tokens"):
        value = body.get(key)
        if isinstance(value, (int, float)) and value > settings.max_tokens:
            raise RequestError(400, f"{key} is {value}; this server gives at most {settings.max_tokens}", key)


def _flag(body: Mapping[str, Any], key: str) -> bool:
    value = body.get(key)
    if value is not None and not isinstance(value, bool):
        raise RequestError(400, f"{key} must be true or false", key)
    return bool(value)


def _text(body: Mapping[str, Any], key: str) -> str | None:
    value = body.get(key)
    if value is not None and not isinstance(value, str):
        raise RequestError(400, f"{key} must be text", key)
    return value


def _whole(body: Mapping[str, Any], key: str, least: int, most: int) -> int | None:
    """Reads an integer; accepts 1.0 for 1."""
    value = body.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value // 1:
        raise RequestError(400, f"{key} must be an integer", key)
    if not least <= value <= most:
        raise RequestError(400, f"{key} must be from {least} to {most}, got {value}", key)
    return int(value)


def texts_or_ids(body: Mapping[str, Any], key: str, most: int) -> list[str | list[int]]:
    """Reads the inputs of an embeddings request: a text, token ids, or a list of either.

    Raises:
        RequestError: the input is none of these, or there are too many.
    """
    value = body.get(key)
    items: Iterable[Any] = value if isinstance(value, list) and value and not isinstance(value[0], int) else [value]
    found = list(items)
    for item in found:
        is_ids = isinstance(item, list) and bool(item) and all(type(token) is int for token in item)
        if not is_ids and not (isinstance(item, str) and item):
            raise RequestError(400, f"{key} must be a text, token ids, or a list of either, and not empty", key)
    if len(found) > most:
        raise RequestError(400, f"{len(found)} inputs; at most {most} in one request", key)
    return found
