"""Converts rows of OpenAI's batch files to this project's own keys.

Clients send many keys that have no effect; these are accepted. A key that requests something unsupported fails its row,
and the error names the key. Knows the format of a request; knows nothing about files, templates or models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from inference.errors import InputError, did_you_mean

OPENAI_KEYS = ("custom_id", "method", "url", "body")
OPENAI_URLS = ("/v1/chat/completions", "/v1/completions")
OPENAI_NAMES = {"max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens", "n": "num_return_sequences"}
# The config chooses the model; accounts and stored responses do not apply here.
OPENAI_WITHOUT_EFFECT = (
    "model",
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "stream_options",
    "prediction",
)


def _is_text_format(value: Any) -> bool:
    return isinstance(value, Mapping) and value.get("type", "text") == "text"


# Keys of tools, which `inference.structured.tools` reads.
TOOL_KEYS = ("tools", "tool_choice", "parallel_tool_calls")
# Keys that are accepted only with values that have no effect: the test of a value, and the hint.
HARMLESS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "stream": (lambda value: value is False, "a row of a file cannot be streamed: leave stream out"),
    "echo": (lambda value: value is False, "accepted: false; --echo puts prompts before answers"),
    "best_of": (lambda value: value == 1, "accepted: 1"),
    "suffix": (lambda value: value == "", "accepted: an empty text"),
    "modalities": (lambda value: value == ["text"], 'accepted: ["text"]'),
    "response_format": (_is_text_format, 'accepted: {"type": "text"}'),
    "function_call": (lambda value: value in ("none", "auto"), 'accepted: "none", or "auto" without functions'),
    "functions": (lambda value: value == [], "accepted: []"),
    "logit_bias": (lambda value: value == {}, "accepted: {}"),
}


def settings_and_prompt(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The body of a row of OpenAI's batch format, in our own keys.

    Raises:
        InputError: the row has another format, or requests something unsupported.
    """
    body, url, method = row["body"], row.get("url", OPENAI_URLS[0]), row.get("method", "POST")
    unknown = [key for key in row if key not in OPENAI_KEYS]
    if unknown:
        hint = did_you_mean(unknown[0], OPENAI_KEYS) or "settings belong into the body"
        raise InputError(f"{where}: unknown key '{unknown[0]}' beside body", hint)
    if not isinstance(body, dict):
        raise InputError(f"{where}: body must be an object, got {type(body).__name__}")
    if url not in OPENAI_URLS or method != "POST":
        raise InputError(f"{where}: {method} {url} cannot be answered", f"accepted: POST {' or '.join(OPENAI_URLS)}")
    passed_over = (*OPENAI_WITHOUT_EFFECT, *TOOL_KEYS)
    given = {key: value for key, value in body.items() if key not in passed_over and value is not None}
    given = _without_harmless(given, where)
    chosen = {OPENAI_NAMES.get(key, key): value for key, value in given.items()}
    _rename_logprobs(chosen)
    # In OpenAI's API, giving a temperature is enough to turn on sampling.
    if "do_sample" not in chosen and (chosen.get("temperature") or "top_p" in chosen):
        chosen["do_sample"] = True
    return chosen


def _without_harmless(body: dict[str, Any], where: str) -> dict[str, Any]:
    # A supported generation setting is not covered by this table.
    kept = {key: value for key, value in body.items() if key not in HARMLESS or _is_setting(key, value)}
    for key, value in body.items():
        if key not in kept:
            is_harmless, accepted = HARMLESS[key]
            if not is_harmless(value):
                raise InputError(f"{where}: '{key}' cannot be done in a row of a file", accepted)
    return kept


def _is_setting(key: str, value: Any) -> bool:
    from inference.config.generation import GenerationConfig

    return key in GenerationConfig.model_fields and not HARMLESS[key][0](value)


def _rename_logprobs(body: dict[str, Any]) -> None:
    """Rewrites `logprobs: true, top_logprobs: 3` of a chat as `logprobs: 3`, the form of a completion."""
    top = body.pop("top_logprobs", 0)
    if isinstance(body.get("logprobs"), bool) and body.pop("logprobs"):
        body["logprobs"] = top
