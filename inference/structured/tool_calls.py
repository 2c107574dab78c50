"""Tool calls in a model's answer: the format of each family, and a reader that extracts calls from a stream.

A family is a row of `FORMATS`. Knows the marks that models write; knows nothing about HTTP. Sources: the models' chat
templates on Hugging Face.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Call = tuple[str, str]
"""A function's name and its arguments as JSON."""


@dataclass(frozen=True)
class ToolFormat:
    """A family's format of tool calls.

    Args:
        mark: text in the chat template that identifies this format.
        begin: marks that begin a call.
        end: the mark that ends a call; None if a call lasts to the end of the answer.
        parse: parses the calls between the marks; empty if the text is not a call.
        inner: additional marks that `parse` reads.
    """

    name: str
    mark: str
    begin: tuple[str, ...]
    end: str | None
    parse: Callable[[str], list[Call]]
    inner: tuple[str, ...] = ()

    @property
    def marks(self) -> frozenset[str]:
        """All marks, which some tokenizers hold as special tokens."""
        return frozenset((*self.begin, *self.inner, *((self.end,) if self.end else ())))


def json_calls(text: str) -> list[Call]:
    """Parses `{"name", "arguments"}` (or `parameters`): one call, a list of calls, or calls separated by `;`."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        pieces = [piece for piece in text.split(";") if piece.strip()]
        if len(pieces) < 2:
            return []
        found = [json_calls(piece) for piece in pieces]
        return [call for calls in found for call in calls] if all(found) else []
    items = value if isinstance(value, list) else [value]
    calls = [_json_call(item) for item in items]
    return [call for call in calls if call is not None] if items and None not in calls else []


def _json_call(item: Any) -> Call | None:
    if not isinstance(item, Mapping) or not isinstance(item.get("name"), str):
        return None
    arguments = item.get("arguments", item.get("parameters", {}))
    return item["name"], arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _mistral_calls(text: str) -> list[Call]:
    """Parses `[{"name", "arguments"}, ...]`, or `NAME[ARGS]{...}` of later models, optionally with `[CALL_ID]`."""
    listed = json_calls(text)
    if listed:
        return listed
    calls = []
    for part in text.split("[TOOL_CALLS]"):
        found = re.fullmatch(r"\s*([\w.-]+)(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?\s*(\{.*\})\s*", part, re.DOTALL)
        if not found or not _is_object(found[2]):
            return []
        calls.append((found[1], found[2]))
    return calls


def _deepseek_calls(text: str) -> list[Call]:
    """Parses `function<｜tool▁sep｜>NAME` and a fenced block (V3, R1), or `NAME<｜tool▁sep｜>{...}` (V3.1)."""
    calls = []
    for part in re.findall(r"<｜tool▁call▁begin｜>(.*?)<｜tool▁call▁end｜>", text, re.DOTALL):
        head, _, rest = part.partition("<｜tool▁sep｜>")
        fenced = re.fullmatch(r"\s*([\w.-]+)\s*```json\s*(.*?)\s*```\s*", rest, re.DOTALL)
        name, arguments = (fenced[1], fenced[2]) if fenced else (head.strip(), rest.strip())
        if not name or not _is_object(arguments):
            return []
        calls.append((name, arguments))
    return calls


def _glm_calls(text: str) -> list[Call]:
    """Parses `NAME`, then `<arg_key>K</arg_key><arg_value>V</arg_value>` for each argument (4.5); or JSON."""
    name, *rest = re.split(r"<arg_key>", text.strip())
    if not re.fullmatch(r"[\w.-]+\s*", name):
        return json_calls(text)
    arguments = {}
    for part in rest:
        found = re.fullmatch(r"(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>\s*", part, re.DOTALL)
        if not found:
            return []
        arguments[found[1].strip()] = _value(found[2])
    return [(name.strip(), json.dumps(arguments, ensure_ascii=False))]


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _is_object(text: str) -> bool:
    return isinstance(_value(text), dict)


FORMATS = (
    ToolFormat("glm", "<arg_key>", ("<tool_call>",), "</tool_call>", _glm_calls),
    ToolFormat("hermes", "<tool_call>", ("<tool_call>",), "</tool_call>", json_calls),
    ToolFormat("mistral", "[TOOL_CALLS]", ("[TOOL_CALLS]",), None, _mistral_calls, ("[ARGS]", "[CALL_ID]")),
    ToolFormat(
        "deepseek",
        "tool▁calls▁begin",
        ("<｜tool▁calls▁begin｜>",),
        "<｜tool▁calls▁end｜>",
        _deepseek_calls,
        ("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"),
    ),
    ToolFormat("llama", "<|python_tag|>", ("<|python_tag|>", "{"), None, json_calls),
    ToolFormat("llama", "ipython", ("<|python_tag|>", "{"), None, json_calls),
    ToolFormat("json", "", ("{", "["), None, json_calls),
)
JSON = FORMATS[-1]


def format_of(template: str) -> ToolFormat:
    """Returns the tool-call format of a model with this chat template."""
    return next(row for row in FORMATS if row.mark in template)


class ToolCallReader:
    """Extracts calls from a streamed answer; all other text remains content.

    Args:
        form: the model's tool-call format.
        salt: text that makes the ids of this answer's calls differ from those of other answers.
        most: maximum number of calls to report; later ones are dropped.
    """

    def __init__(self, form: ToolFormat, salt: str = "", most: int | None = None):
        self._form, self._salt, self._most = form, salt, most
        self._text = ""
        self._opened = ""
        self._in_call = False
        self._has_content = False
        self._count = 0

    @property
    def has_calls(self) -> bool:
        """Whether a call has been found."""
        return self._count > 0

    def push(self, text: str) -> Iterable[Mapping[str, Any]]:
        """Adds `text`; returns the message deltas that are now certain, in OpenAI's streaming format."""
        self._text += text
        deltas: list[dict[str, Any]] = []
        while self._advance(deltas):
            pass
        return deltas

    def finish(self) -> Iterable[Mapping[str, Any]]:
        """Ends the answer; returns the remaining message deltas."""
        deltas: list[dict[str, Any]] = []
        if self._in_call:
            self._close(self._text, self._opened + self._text, deltas)
        else:
            self._content(self._text, deltas)
        self._text = ""
        return deltas

    def _advance(self, deltas: list[dict[str, Any]]) -> bool:
        """Parses one step of the text; returns False if more text is needed."""
        if self._in_call:
            end = self._form.end
            if end is None or end not in self._text:
                return False
            inside, _, rest = self._text.partition(end)
            self._close(inside, f"{self._opened}{inside}{end}", deltas)
            self._text = rest
            return bool(rest)
        found = [(self._text.find(mark), mark) for mark in self._begins() if mark in self._text]
        if found:
            place, mark = min(found)
            self._content(self._text[:place], deltas)
            # A bare brace is part of the call itself.
            self._opened = "" if len(mark) == 1 else mark
            self._text = self._text[place:] if len(mark) == 1 else self._text[place + len(mark) :]
            self._in_call = True
            return True
        held = max((overlap(self._text, mark) for mark in self._begins()), default=0)
        self._content(self._text[: len(self._text) - held], deltas)
        self._text = self._text[len(self._text) - held :]
        return False

    def _begins(self) -> list[str]:
        """Returns the marks that may begin a call now: a bare brace only if nothing but white space precedes it."""
        fresh = not self._has_content and not self._count
        start = self._text.lstrip()[:1]
        return [mark for mark in self._form.begin if len(mark) > 1 or (fresh and start in ("", mark))]

    def _close(self, inside: str, whole: str, deltas: list[dict[str, Any]]) -> None:
        self._in_call = False
        calls = self._form.parse(inside.strip())
        if not calls:
            self._content(whole, deltas)
        for name, arguments in calls:
            if self._count == self._most:
                return
            index, identity = self._count, _identity(f"{self._salt}:{self._count}")
            self._count += 1
            head = {"index": index, "id": identity, "type": "function", "function": {"name": name, "arguments": ""}}
            deltas.append({"tool_calls": [head]})
            deltas.append({"tool_calls": [{"index": index, "function": {"arguments": arguments}}]})

    def _content(self, text: str, deltas: list[dict[str, Any]]) -> None:
        # Drop white space around calls.
        if not text or (not text.strip() and (self._count or not self._has_content)):
            return
        self._has_content = True
        deltas.append({"content": text})


def _identity(text: str) -> str:
    """Returns the id of a call: nine letters and digits, the only form that Mistral's templates accept."""
    return base64.b32encode(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest())[:9].decode()


def overlap(text: str, mark: str) -> int:
    """Returns the length of the longest suffix of `text` that may begin `mark`."""
    return next((size for size in range(min(len(text), len(mark) - 1), 0, -1) if mark.startswith(text[-size:])), 0)
