"""The content of an input row: a prompt as text, token ids or a chat, a name, and its own settings.

Knows rows; knows nothing about the files they come from, tokenizers or models.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from inference.config.generation import GenerationConfig
from inference.errors import ConfigError, InputError, did_you_mean
from inference.inputs.messages import normal_messages
from inference.inputs.openai_rows import settings_and_prompt
from inference.structured.tools import Tools, read_tools

# Keys of a row that control its chat template.
CHAT_KEYS = ("tools", "chat_template_kwargs", "continue_final_message", "add_generation_prompt")
ROW_KEYS = ("custom_id", "prompt", "messages", "body", *CHAT_KEYS)


class RowError(InputError):
    """An invalid row.

    Args:
        custom_id: its name, if it could be read.
    """

    def __init__(self, what: str, hint: str | None = None, custom_id: str | None = None):
        super().__init__(what, hint)
        self.custom_id = custom_id


@dataclass(frozen=True)
class Prompt:
    """One row of input: exactly one of `text`, `token_ids` and `messages` is given.

    Args:
        custom_id: the row's name in the output.
        where: location to name in errors, such as `prompts.jsonl:3`.
        settings: generation settings of this row alone.
        chat: options for the chat template; the keys are `CHAT_KEYS`.
        digest: digest of the row as stored in its file, if the row has no custom_id.
        tools: tools that the answer may call, in a row of OpenAI's format; None for an answer that is only text.
    """

    custom_id: str
    where: str
    text: str | None = None
    token_ids: tuple[int, ...] | None = None
    messages: tuple[Mapping[str, Any], ...] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    chat: Mapping[str, Any] = field(default_factory=dict)
    digest: str | None = None
    tools: Tools | None = None


def parse_row(line: str, where: str, default_id: str) -> Prompt:
    """Parses one line of a .jsonl file: an object with `prompt` (text or token ids) or `messages`, and settings; or a
    row of OpenAI's batch format, which has these in `body`.

    Raises:
        RowError: not JSON, no prompt, or an unknown or invalid setting; the message begins with `where`.
    """
    return prompt_from_mapping(parse_object(line, where), where, default_id)


def parse_object(line: str, where: str) -> dict[str, Any]:
    """Parses the JSON object on a line.

    Raises:
        RowError: the line is not a JSON object; the message begins with `where`.
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
    name = row.get("custom_id")
    # pandas writes a missing name as null or NaN, and then the numbers in that column as 7.0.
    if name is None or name != name:
        return default_id
    if isinstance(name, float) and name.is_integer():
        name = int(name)
    if not isinstance(name, (str, int, float)) or isinstance(name, bool):
        raise RowError(f"{where}: custom_id must be text or a number")
    return str(name)


def prompt_from_mapping(row: Mapping[str, Any], where: str, default_id: str) -> Prompt:
    """Makes the prompt of a parsed row.

    Raises:
        RowError: as for `parse_row`.
    """
    name = name_of_row(row, where, default_id)
    try:
        if "body" not in row:
            return _prompt(row, where, name)
        return _with_tools(_prompt(settings_and_prompt(row, where), where, name), row["body"])
    except InputError as error:
        raise RowError(error.what, error.hint, name) from error


def prompt_of(value: Any, where: str, custom_id: str) -> Prompt:
    """Makes a prompt from a text or a sequence of token ids.

    Raises:
        RowError: the value is neither, or is empty; the message begins with `where`.
    """
    try:
        return _prompt({"prompt": value}, where, custom_id)
    except InputError as error:
        raise RowError(error.what, error.hint, custom_id) from error


def check_text(text: str, where: str) -> str:
    """Returns the text if it is not blank.

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


def _with_tools(prompt: Prompt, body: Mapping[str, Any]) -> Prompt:
    """Adds the tools of a row in OpenAI's format: the template shows them, and a grammar holds a required call."""
    try:
        tools = read_tools(body.get("tools"), body.get("tool_choice"), body.get("parallel_tool_calls"))
    except InputError as error:
        raise InputError(f"{prompt.where}: {error.what}", error.hint) from None
    if tools is None:
        return prompt
    if prompt.messages is None:
        raise InputError(f"{prompt.where}: tools need messages", "a prompt of text calls no tools")
    if any(key in prompt.settings for key in ("structured_outputs", "response_format")):
        raise InputError(
            f"{prompt.where}: tools and a form of the answer exclude each other",
            'leave out response_format, or give tool_choice "none"',
        )
    schema = tools.schema()
    return replace(
        prompt,
        tools=tools,
        chat={**prompt.chat, "tools": list(tools.given)},
        settings=prompt.settings if schema is None else {**prompt.settings, "structured_outputs": {"json": schema}},
    )


def _chat(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The chat template options of a row."""
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
        return None, None, normal_messages(messages, where)
    if isinstance(prompt, str):
        return check_text(prompt, where), None, None
    ids = token_ids_of(prompt)
    if ids is None or any(token < 0 for token in ids):
        raise InputError(f"{where}: prompt must be text or a list of token ids")
    if not ids:
        raise InputError(f"{where}: the prompt is empty", "give at least one token")
    return None, ids, None


def token_ids_of(value: Any) -> tuple[int, ...] | None:
    """The integers of a list, a tuple or a one-dimensional array; None for anything else."""
    if isinstance(value, (str, bytes, Mapping)) or not hasattr(value, "__getitem__"):
        return None
    try:
        # `operator.index` also accepts True and arrays of one element.
        if any(isinstance(token, bool) or hasattr(token, "__len__") for token in value):
            return None
        return tuple(operator.index(token) for token in value)
    except TypeError:
        return None


def _row_settings(settings: dict[str, Any], where: str) -> dict[str, Any]:
    # Clients in languages without integers write 5.0 for 5; null means that the setting is not given.
    settings = {key: _whole(value) for key, value in settings.items() if value is not None}
    if not settings:
        return settings
    try:
        GenerationConfig().updated(**settings)
    except (ConfigError, TypeError) as error:
        unknown = [key for key in settings if key not in GenerationConfig.model_fields]
        hint = did_you_mean(unknown[0], [*GenerationConfig.model_fields, *ROW_KEYS]) if unknown else None
        raise InputError(f"{where}: {error.what if isinstance(error, ConfigError) else error}", hint) from error
    return settings


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value
