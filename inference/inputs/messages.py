"""Converts chat messages from the form clients send to the form that chat templates expect.

Knows messages; knows nothing about any particular template.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from inference.errors import InputError

FORM = "messages must be a list of objects with 'role' and 'content'"
# Content parts that hold text, and the key of that text.
TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}


def normal_messages(messages: Any, where: str) -> tuple[dict[str, Any], ...]:
    """Normalizes the messages of a chat.

    Null content beside tool calls becomes an empty text. Text parts are joined into one text. Arguments of tool calls
    become objects, as templates expect, instead of the JSON text of OpenAI's API. `developer`, OpenAI's newer name for
    the role `system`, becomes `system`: most templates silently skip a role that they do not know.

    Raises:
        InputError: the messages are invalid; the error begins with `where`.
    """
    is_list = isinstance(messages, (list, tuple)) and bool(messages)
    if not is_list or not all(isinstance(message, Mapping) and "role" in message for message in messages):
        raise InputError(f"{where}: {FORM}", 'such as [{"role": "user", "content": "Hello"}]')
    return tuple(_normal(message, f"{where}: message {number + 1}", where) for number, message in enumerate(messages))


def _normal(message: Mapping[str, Any], place: str, where: str) -> dict[str, Any]:
    role, content = message["role"], message.get("content")
    if not isinstance(role, str) or not role:
        raise InputError(f"{place}: role must be text")
    # Null means that the key is not given, both in OpenAI's API and in what pandas writes.
    normal = {key: value for key, value in message.items() if value is not None}
    normal["role"] = "system" if role == "developer" else role
    if "tool_calls" in normal:
        normal["tool_calls"] = _tool_calls(normal["tool_calls"], place)
    normal["content"] = _text(content, bool(normal.get("tool_calls")), place, where)
    return normal


def _text(content: Any, has_tool_calls: bool, place: str, where: str) -> str:
    if isinstance(content, str):
        return content
    if content is None:
        if has_tool_calls:
            return ""
        raise InputError(f"{place} has no content", "give a text; only a message with tool_calls may go without")
    if not isinstance(content, (list, tuple)):
        raise InputError(f"{place}: content must be text or a list of parts, got {type(content).__name__}")
    return "".join(_part(part, where) for part in content)


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    key = TEXT_PARTS.get(part.get("type", "text")) if isinstance(part, Mapping) else None
    text = part.get(key) if key is not None else None
    if not isinstance(text, str):
        raise InputError(f"{where}: a message has a part that is not text", "only text can be answered")
    return text


def _tool_calls(calls: Any, place: str) -> list[dict[str, Any]]:
    if not isinstance(calls, (list, tuple)) or not all(isinstance(call, Mapping) for call in calls):
        raise InputError(f"{place}: tool_calls must be a list of objects")
    return [_tool_call(call) for call in calls]


def _tool_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    arguments = function.get("arguments") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(arguments, str):
        return dict(call)
    try:
        parsed = json.loads(arguments)
    except (ValueError, RecursionError):  # written by a model, perhaps not JSON: pass to the template unchanged
        return dict(call)
    return {**call, "function": {**function, "arguments": parsed}} if isinstance(parsed, dict) else dict(call)
