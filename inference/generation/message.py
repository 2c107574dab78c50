"""Reads the text of a chat answer as a message: its reasoning, its content and its tool calls.

The readers work on text as it arrives, and return deltas of the message in OpenAI's streaming format. A whole text is
read by the same readers. Knows texts; knows nothing about tokens or HTTP.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from inference.generation.text import EncodedPrompt
from inference.structured.tool_calls import ToolCallReader, overlap
from inference.tokenizer.chat import END_OF_THINK, THINK

Delta = Mapping[str, Any]
# The finish reason of an answer that calls tools and was not cut off.
TOOL_CALLS = "tool_calls"


class MessageReader(Protocol):
    """Converts text to deltas of a message as it arrives."""

    @property
    def has_calls(self) -> bool:
        """Whether the message calls tools."""

    def push(self, text: str) -> Iterable[Delta]: ...

    def finish(self) -> Iterable[Delta]: ...


class ContentReader:
    """Treats all text as the message's content."""

    has_calls = False

    def push(self, text: str) -> Iterable[Delta]:
        return [{"content": text}] if text else []

    def finish(self) -> Iterable[Delta]:
        return []


class ReasoningReader:
    """Separates the reasoning at the start of an answer; leaves the rest to another reader.

    Args:
        answer: reads the text after the reasoning.
        is_open: the prompt ends with the opening <think>, so the answer begins inside the reasoning.

    Attributes:
        has_reasoning: whether the answer begins with reasoning, which may be empty.
    """

    def __init__(self, answer: MessageReader, is_open: bool = False):
        self._answer, self._is_open = answer, is_open
        self._stage = self._begin
        self._text = ""
        self._is_fresh = True
        self.has_reasoning = False

    @property
    def has_calls(self) -> bool:
        return self._answer.has_calls

    def push(self, text: str) -> Iterable[Delta]:
        self._text += text
        return self._stage(False) if text else []

    def finish(self) -> Iterable[Delta]:
        return [*self._stage(True), *self._answer.finish()]

    def _begin(self, at_end: bool) -> list[Delta]:
        """Waits until it is certain whether the text begins with the mark."""
        start = self._text.lstrip()
        if not at_end and THINK.startswith(start) and start != THINK:
            return []
        is_marked = start.startswith(THINK)
        self.has_reasoning = is_marked or self._is_open
        if is_marked:
            self._text = start[len(THINK) :]
        self._stage = self._reason if self.has_reasoning else self._rest
        return self._stage(at_end)

    def _reason(self, at_end: bool) -> list[Delta]:
        """Returns reasoning without white space around it, up to the end mark or what may be its start."""
        thought, mark, rest = self._text.partition(END_OF_THINK)
        if mark:
            self._text, self._stage = rest, self._skip
            return [*self._thought(thought.rstrip()), *self._skip(at_end)]
        held = 0 if at_end else overlap(thought, END_OF_THINK)
        shown = thought[: len(thought) - held].rstrip()
        self._text = thought[len(shown) :]
        return self._thought(shown)

    def _thought(self, text: str) -> list[Delta]:
        if self._is_fresh:
            text = text.lstrip()
        self._is_fresh = self._is_fresh and not text
        return [{"reasoning_content": text}] if text else []

    def _skip(self, at_end: bool) -> list[Delta]:
        """Drops the line breaks between the reasoning and the answer."""
        self._text = self._text.lstrip("\n")
        if self._text:
            self._stage = self._rest
        return self._rest(at_end)

    def _rest(self, at_end: bool) -> list[Delta]:
        text, self._text = self._text, ""
        return list(self._answer.push(text))


def message_reader(source: EncodedPrompt) -> ReasoningReader:
    """Returns a reader for the answer to a chat prompt."""
    tools = source.prompt.tools
    answer: MessageReader = ContentReader()
    if tools is not None and source.tool_format is not None:
        salt = f"{source.prompt.custom_id}:{source.sample}:{source.text}"
        answer = ToolCallReader(source.tool_format, salt, None if tools.parallel else 1)
    return ReasoningReader(answer, source.text.rstrip().endswith(THINK))


def read_message(source: EncodedPrompt, text: str) -> tuple[dict[str, Any], str | None]:
    """Reads a whole answer; returns the message and its reasoning, or None if it does not begin with reasoning."""
    reader = message_reader(source)
    message: dict[str, Any] = {"content": None}
    for delta in (*reader.push(text), *reader.finish()):
        merge_delta(message, delta)
    reasoning = message.pop("reasoning_content", "")
    return message, reasoning if reader.has_reasoning else None


def merge_delta(message: dict[str, Any], delta: Delta) -> None:
    """Merges a delta into a message as clients do: appends texts and joins tool calls by index."""
    for key, value in delta.items():
        if key == "tool_calls":
            calls = message.setdefault("tool_calls", [])
            for change in value:
                while len(calls) <= change["index"]:
                    calls.append({"id": None, "type": "function", "function": {"name": "", "arguments": ""}})
                call, function = calls[change["index"]], change.get("function", {})
                call["id"] = change.get("id") or call["id"]
                call["function"]["name"] += function.get("name") or ""
                call["function"]["arguments"] += function.get("arguments") or ""
        elif isinstance(value, str) and key != "role":
            message[key] = (message.get(key) or "") + value
        else:
            message[key] = value
