"""What a row of input may say: a prompt as text, token ids or a chat, its name, and settings of its own.

Knows rows; knows nothing about the files that they come from, tokenizers or models.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from inference.config.generation import GenerationConfig
from inference.errors import ConfigError, InputError, did_you_mean

# What a row may say about the template of its chat.
CHAT_KEYS = ("tools", "chat_template_kwargs", "continue_final_message", "add_generation_prompt")
ROW_KEYS = ("custom_id", "prompt", "messages", "body", *CHAT_KEYS)
# The rows of OpenAI's batch files, and what their bodies may ask for.
OPENAI_KEYS = ("custom_id", "method", "url", "body")
OPENAI_URLS = ("/v1/chat/completions", "/v1/completions")
OPENAI_NAMES = {"max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens", "n": "num_return_sequences"}
# Which model answers is the config's business, and whose account it is nobody's.
OPENAI_WITHOUT_EFFECT = ("model", "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")


class RowError(InputError):
    """A row that makes no sense.

    Args:
        custom_id: its name, where it could be read.
    """

    def __init__(self, what: str, hint: str | None = None, custom_id: str | None = None):
        super().__init__(what, hint)
        self.custom_id = custom_id


@dataclass(frozen=True)
class Prompt:
    """One row of input: exactly one of `text`, `token_ids` and `messages` is given.

    Args:
        custom_id: the row's name in the output.
        where: what to name in errors, such as `prompts.jsonl:3`.
        settings: generation settings of this row alone.
        chat: what the chat template is given, by the names of `CHAT_KEYS`.
        digest: of the row as it stands in its file, if the row has no name of its own.
    """

    custom_id: str
    where: str
    text: str | None = None
    token_ids: tuple[int, ...] | None = None
    messages: tuple[Mapping[str, Any], ...] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    chat: Mapping[str, Any] = field(default_factory=dict)
    digest: str | None = None


def parse_row(line: str, where: str, default_id: str) -> Prompt:
    """One line of a .jsonl file: an object with `prompt` (text or token ids) or `messages`, and settings; or a row of
    OpenAI's batch format, which has these in `body`.

    Raises:
        RowError: no JSON, no prompt, or an unknown or impossible setting; the message begins with `where`.
    """
    return prompt_from_mapping(parse_object(line, where), where, default_id)


def parse_object(line: str, where: str) -> dict[str, Any]:
    """The JSON object on a line.

    Raises:
        RowError: there is none; the message begins with `where`.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RowError(f"{where}: not JSON ({error})", 'a row looks like {"prompt": "..."}') from error
    if not isinstance(row, dict):
        raise RowError(f"{where}: a row must be an object, got {type(row).__name__}")
    return row


def name_of_row(row: Mapping[str, Any], where: str, default_id: str) -> str:
    """The row's own name, or the default.

    Raises:
        RowError: its name is neither text nor a number.
    """
    name = row.get("custom_id", default_id)
    if not isinstance(name, (str, int)) or isinstance(name, bool):
        raise RowError(f"{where}: custom_id must be text or a number")
    return str(name)


def prompt_from_mapping(row: Mapping[str, Any], where: str, default_id: str) -> Prompt:
    """The prompt of such an object.

    Raises:
        RowError: as `parse_row`.
    """
    name = name_of_row(row, where, default_id)
    try:
        return _prompt(_body(row, where) if "body" in row else row, where, name)
    except InputError as error:
        raise RowError(error.what, error.hint, name) from error


def prompt_of(value: Any, where: str, custom_id: str) -> Prompt:
    """A prompt that is a text, or token ids in any sequence.

    Raises:
        RowError: it is neither, or empty; the message begins with `where`.
    """
    try:
        return _prompt({"prompt": value}, where, custom_id)
    except InputError as error:
        raise RowError(error.what, error.hint, custom_id) from error


def check_text(text: str, where: str) -> str:
    """The text, if there is anything in it.

    Raises:
        InputError: it is empty or blank; the message begins with `where`.
    """
    if isinstance(text, str) and not text.strip():
        raise InputError(f"{where}: the prompt is empty", "give at least one character")
    return text


def _prompt(row: Mapping[str, Any], where: str, custom_id: str) -> Prompt:
    settings = _row_settings({key: value for key, value in row.items() if key not in ROW_KEYS}, where)
    given = [key for key in ("prompt", "messages") if row.get(key) is not None]
    if len(given) != 1:
        accepted = "give either 'prompt' (text or token ids) or 'messages'"
        raise InputError(f"{where}: {'both prompt and messages' if given else 'no prompt'} in this row", accepted)
    text, ids, messages = _content(row, where)
    return Prompt(custom_id, where, text, ids, messages, settings, chat=_chat(row, where))


def _chat(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What a row says about the template of its chat."""
    given = {key: row[key] for key in CHAT_KEYS if row.get(key) is not None}
    tools, variables = given.get("tools"), given.get("chat_template_kwargs", {})
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, Mapping) for tool in tools)):
        raise InputError(f"{where}: tools must be a list of objects", 'such as {"type": "function", "function": {...}}')
    if not isinstance(variables, Mapping) or not all(isinstance(name, str) for name in variables):
        raise InputError(f"{where}: chat_template_kwargs must be an object", 'such as {"enable_thinking": false}')
    for key in ("continue_final_message", "add_generation_prompt"):
        if not isinstance(given.get(key, False), bool):
            raise InputError(f"{where}: {key} must be true or false")
    if given.get("continue_final_message") and given.get("add_generation_prompt"):
        raise InputError(f"{where}: continue_final_message and add_generation_prompt exclude each other", "give one")
    return given


def _content(row: Mapping[str, Any], where: str) -> tuple[str | None, tuple[int, ...] | None, tuple | None]:
    prompt, messages = row.get("prompt"), row.get("messages")
    if messages is not None:
        is_list = isinstance(messages, (list, tuple)) and bool(messages)
        if not is_list or not all(isinstance(message, Mapping) and "role" in message for message in messages):
            raise InputError(f"{where}: messages must be a list of objects with 'role' and 'content'")
        return None, None, tuple(dict(_check_parts(message, where)) for message in messages)
    if isinstance(prompt, str):
        return check_text(prompt, where), None, None
    ids = token_ids_of(prompt)
    if ids is None or any(token < 0 for token in ids):
        raise InputError(f"{where}: prompt must be text or a list of token ids")
    if not ids:
        raise InputError(f"{where}: the prompt is empty", "give at least one token")
    return None, ids, None


def token_ids_of(value: Any) -> tuple[int, ...] | None:
    """The integers of a list, a tuple or an array of one dimension; None for all else."""
    if isinstance(value, (str, bytes, Mapping)) or not hasattr(value, "__getitem__"):
        return None
    try:
        # An array of one number is an index too, and so is True.
        if any(isinstance(token, bool) or hasattr(token, "__len__") for token in value):
            return None
        return tuple(operator.index(token) for token in value)
    except TypeError:
        return None


def _check_parts(message: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """A message, if the parts of its content are text."""
    parts = message.get("content")
    if isinstance(parts, list) and not all(
        isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts
    ):
        raise InputError(f"{where}: a message has a part that is no text", "only text can be answered")
    return message


def _row_settings(settings: dict[str, Any], where: str) -> dict[str, Any]:
    if not settings:
        return settings
    try:
        GenerationConfig().updated(**settings)
    except (ConfigError, TypeError) as error:
        unknown = [key for key in settings if key not in GenerationConfig.model_fields]
        hint = did_you_mean(unknown[0], [*GenerationConfig.model_fields, *ROW_KEYS]) if unknown else None
        raise InputError(f"{where}: {error.what if isinstance(error, ConfigError) else error}", hint) from error
    return settings


def _body(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A row of OpenAI's batch format in our own keys."""
    body, url = row["body"], row.get("url", OPENAI_URLS[0])
    unknown = [key for key in row if key not in OPENAI_KEYS]
    if unknown:
        hint = did_you_mean(unknown[0], OPENAI_KEYS) or "settings belong into the body"
        raise InputError(f"{where}: unknown key '{unknown[0]}' beside body", hint)
    if not isinstance(body, dict):
        raise InputError(f"{where}: body must be an object, got {type(body).__name__}")
    if url not in OPENAI_URLS or row.get("method", "POST") != "POST":
        raise InputError(
            f"{where}: {row.get('method', 'POST')} {url} cannot be answered",
            f"accepted: POST {' or '.join(OPENAI_URLS)}",
        )
    given = {key: value for key, value in body.items() if key not in OPENAI_WITHOUT_EFFECT and value is not None}
    if given.pop("stream", False):
        raise InputError(f"{where}: a row of a file cannot be streamed", "leave stream out")
    chosen = {OPENAI_NAMES.get(key, key): value for key, value in given.items()}
    _rename_logprobs(chosen)
    # There a temperature is all that it takes to sample.
    if "do_sample" not in chosen and (chosen.get("temperature") or "top_p" in chosen):
        chosen["do_sample"] = True
    return chosen


def _rename_logprobs(body: dict[str, Any]) -> None:
    """`logprobs: true, top_logprobs: 3` of a chat is `logprobs: 3`, as it is of a completion."""
    top = body.pop("top_logprobs", 0)
    if isinstance(body.get("logprobs"), bool) and body.pop("logprobs"):
        body["logprobs"] = top
