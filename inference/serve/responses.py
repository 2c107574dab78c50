"""Answers `/v1/responses` on top of the chat: converts the request to a chat, and the chat's answer to output items.

Nothing is stored: a request that refers to an earlier response is rejected. Knows these formats; knows nothing about
HTTP or how a chat is answered.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any

from inference.errors import did_you_mean
from inference.generation.message import merge_delta
from inference.serve.answers import Answers
from inference.serve.errors import RequestError
from inference.serve.generation import Rows

# Keys with the same name and meaning in a chat.
SHARED = ("model", "temperature", "top_p", "stream", "tool_choice", "parallel_tool_calls", "top_k", "min_p", "seed")
WITHOUT_EFFECT = ("metadata", "user", "store", "service_tier", "safety_identifier", "prompt_cache_key", "include")
KEYS = (
    *("input", "instructions", "max_output_tokens", "text", "tools", "truncation", "chat_template_kwargs"),
    *(*SHARED, *WITHOUT_EFFECT),
)


def as_chat(body: Mapping[str, Any]) -> dict[str, Any]:
    """Converts the body of a request to that of a chat.

    Raises:
        RequestError: a key is unknown, or a value is invalid.
    """
    given = {key: value for key, value in body.items() if value is not None}
    for key in given:
        if key not in KEYS:
            hint = did_you_mean(key, KEYS) or "responses are not stored, and only text and functions are supported"
            raise RequestError(400, f"unknown key '{key[:200]}'; {hint}", key[:200], "unknown_parameter")
    if given.get("truncation", "disabled") != "disabled":
        raise RequestError(400, "truncation must be 'disabled'", "truncation")
    chat = {key: given[key] for key in (*SHARED, "chat_template_kwargs") if key in given}
    system = [{"role": "system", "content": given["instructions"]}] if "instructions" in given else []
    chat["messages"] = [*system, *_messages(given.get("input"))]
    if "max_output_tokens" in given:
        chat["max_tokens"] = given["max_output_tokens"]
    if "tools" in given:
        chat["tools"] = [_tool(tool) for tool in _list(given["tools"], "tools")]
    choice = given.get("tool_choice")
    if isinstance(choice, Mapping):
        chat["tool_choice"] = {"type": "function", "function": {"name": choice.get("name")}}
    form = _format(given.get("text"))
    if form is not None:
        chat["response_format"] = form
    return chat


class Response:
    """The response to one request.

    Args:
        body: the body of the request, whose settings the response repeats.
        answers: the chat's answers; there is one.
    """

    def __init__(self, body: Mapping[str, Any], answers: Answers, model: str):
        self._answers = answers
        self._head: dict[str, Any] = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            "error": None,
            "previous_response_id": None,
            "tools": body.get("tools") or [],
            "tool_choice": body.get("tool_choice") or "auto",
            "parallel_tool_calls": body.get("parallel_tool_calls") is not False,
            "text": body.get("text") or {"format": {"type": "text"}},
            "metadata": body.get("metadata") or {},
            **{key: body.get(key) for key in ("instructions", "max_output_tokens", "temperature", "top_p")},
        }

    async def whole(self, rows: Rows) -> dict[str, Any]:
        """Waits for the answer and returns it as one object."""
        message, reason = _empty_message(), None
        async for parts in self._answers.parts(rows):
            for part in parts:
                merge_delta(message, part["delta"])
                reason = part["finish_reason"] or reason
        return self._finished(_items(message), reason)

    async def events(self, rows: Rows) -> AsyncIterator[bytes]:
        """Streams the answer as server-sent events."""
        number = 0
        async for event in self._events(rows):
            data = json.dumps({**event, "sequence_number": number}, ensure_ascii=False)
            yield f"event: {event['type']}\ndata: {data}\n\n".encode()
            number += 1

    async def _events(self, rows: Rows) -> AsyncIterator[dict[str, Any]]:
        begun = {**self._head, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
        yield {"type": "response.created", "response": begun}
        yield {"type": "response.in_progress", "response": begun}
        stream, reason = _ItemStream(), None
        async for parts in self._answers.parts(rows):
            for part in parts:
                for event in stream.push(part["delta"]):
                    yield event
                reason = part["finish_reason"] or reason
        for event in stream.close():
            yield event
        done = self._finished(stream.done, reason)
        yield {"type": f"response.{done['status']}", "response": done}

    def _finished(self, output: list[dict[str, Any]], reason: str | None) -> dict[str, Any]:
        is_cut, usage = reason == "length", self._answers.usage()
        return {
            **self._head,
            "status": "incomplete" if is_cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "output": output,
            "usage": {
                "input_tokens": usage["prompt_tokens"],
                "input_tokens_details": usage["prompt_tokens_details"],
                "output_tokens": usage["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage["total_tokens"],
            },
        }


class _ItemStream:
    """Converts deltas of a message to events: each item is added, extended and finished before the next one.

    Attributes:
        done: the finished items.
    """

    def __init__(self) -> None:
        self.done: list[dict[str, Any]] = []
        self._message = _empty_message()
        self._item: dict[str, Any] | None = None

    def push(self, delta: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Returns the events of a delta."""
        events: list[dict[str, Any]] = []
        for key in ("reasoning_content", "content"):
            if delta.get(key):
                events += self._grow(key, {key: delta[key]}, str(delta[key]))
        for change in delta.get("tool_calls", ()):
            text = change.get("function", {}).get("arguments") or ""
            events += self._grow(f"call {change['index']}", {"tool_calls": [{**change, "index": 0}]}, text)
        return events

    def close(self) -> list[dict[str, Any]]:
        """Returns the events that end the open item."""
        if self._item is None:
            return []
        (item,) = _items(self._message, self._item["id"])
        place = {"item_id": item["id"], "output_index": len(self.done)}
        events: list[dict[str, Any]] = []
        if item["type"] == "function_call":
            named = {"name": item["name"], "arguments": item["arguments"]}
            events.append({"type": "response.function_call_arguments.done", **place, **named})
        else:
            (part,) = item["content"]
            kind, inside = part["type"], {**place, "content_index": 0}
            more: dict[str, Any] = {"logprobs": []} if kind == "output_text" else {}
            events.append({"type": f"response.{kind}.done", **inside, "text": part["text"], **more})
            events.append({"type": "response.content_part.done", **inside, "part": part})
        events.append({"type": "response.output_item.done", "output_index": len(self.done), "item": item})
        self.done.append(item)
        self._item = None
        return events

    def _grow(self, key: str, delta: Mapping[str, Any], text: str) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = []
        if self._item is not None and self._item["key"] != key:
            events += self.close()
        is_new = self._item is None
        if is_new:
            self._message = _empty_message()
        merge_delta(self._message, delta)
        if is_new:
            events += self._open(key)
        assert self._item is not None
        place = {"item_id": self._item["id"], "output_index": len(self.done)}
        if key.startswith("call"):
            if text:
                events.append({"type": "response.function_call_arguments.delta", **place, "delta": text})
        else:
            kind = "output_text" if key == "content" else "reasoning_text"
            more: dict[str, Any] = {"logprobs": []} if kind == "output_text" else {}
            events.append({"type": f"response.{kind}.delta", **place, "content_index": 0, "delta": text, **more})
        return events

    def _open(self, key: str) -> list[dict[str, Any]]:
        (item,) = _items(self._message)
        self._item = {"id": item["id"], "key": key}
        index = len(self.done)
        begun = {**item, "status": "in_progress"}
        if item["type"] == "function_call":
            return [{"type": "response.output_item.added", "output_index": index, "item": {**begun, "arguments": ""}}]
        (part,) = item["content"]
        empty = {**part, "text": ""}
        place = {"item_id": item["id"], "output_index": index, "content_index": 0}
        return [
            {"type": "response.output_item.added", "output_index": index, "item": {**begun, "content": []}},
            {"type": "response.content_part.added", **place, "part": empty},
        ]


def _empty_message() -> dict[str, Any]:
    return {"role": "assistant", "content": None}


def _items(message: Mapping[str, Any], name: str | None = None) -> list[dict[str, Any]]:
    """Returns the output items of a message.

    Args:
        name: the item's id, if the message is one item.
    """
    items: list[dict[str, Any]] = []
    if message.get("reasoning_content"):
        content = [{"type": "reasoning_text", "text": message["reasoning_content"]}]
        items.append({"type": "reasoning", "id": name or _id("rs"), "summary": [], "content": content})
    if message.get("content"):
        part = {"type": "output_text", "text": message["content"], "annotations": [], "logprobs": []}
        items.append({"type": "message", "id": name or _id("msg"), "role": "assistant", "content": [part]})
    for call in message.get("tool_calls") or ():
        named = {"call_id": call["id"], **call["function"]}
        items.append({"type": "function_call", "id": name or _id("fc"), **named})
    return [{**item, "status": "completed"} for item in items]


def _id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"


def _list(value: Any, key: str) -> list[Any]:
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise RequestError(400, f"{key} must be a list of objects", key)
    return value


def _messages(value: Any) -> list[dict[str, Any]]:
    """Reads `input`: a text, or a list of messages, function calls and their outputs."""
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    messages: list[dict[str, Any]] = []
    for item in _list(value, "input"):
        kind = item.get("type", "message")
        if kind == "message":
            messages.append({"role": item.get("role"), "content": item.get("content")})
        elif kind == "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            if messages and messages[-1].get("tool_calls"):
                messages[-1]["tool_calls"].append(call)
            else:
                messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        elif kind == "function_call_output":
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")})
        elif kind != "reasoning":  # models do not read their earlier reasoning
            accepted = "message, function_call, function_call_output, reasoning"
            raise RequestError(400, f"input has an item of type {kind!r:.50}; accepted: {accepted}", "input")
    return messages


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise RequestError(400, f"a tool has type {tool.get('type')!r:.50}; accepted: function", "tools")
    return {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}


def _format(text: Any) -> dict[str, Any] | None:
    """Reads `text.format` as a chat's `response_format`."""
    if text is None:
        return None
    form = text.get("format") if isinstance(text, Mapping) else None
    if not isinstance(form, Mapping):
        raise RequestError(400, "text must be an object with format", "text")
    if form.get("type") != "json_schema":
        return dict(form)
    return {"type": "json_schema", "json_schema": {key: value for key, value in form.items() if key != "type"}}
