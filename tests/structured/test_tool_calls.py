"""Calls of tools as every family writes them, whole and streamed by the character."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from inference.structured.tool_calls import FORMATS, ToolCallReader, ToolFormat, format_of

ARGUMENTS = {"city": "Köln", "days": 2}
JSON = json.dumps(ARGUMENTS, ensure_ascii=False)
CALL = json.dumps({"name": "weather", "arguments": ARGUMENTS})
LLAMA = json.dumps({"name": "weather", "parameters": ARGUMENTS})
FAMILIES = {
    "{{ '<tool_call>' }} <arg_key>": "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Köln</arg_value>\n"
    "<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>",
    "{{ '<tool_call>' }}": f"<tool_call>\n{CALL}\n</tool_call>",
    "[TOOL_CALLS]": f"[TOOL_CALLS][{CALL}]",
    "[TOOL_CALLS] later": f"[TOOL_CALLS]weather[ARGS]{JSON}",
    "<｜tool▁calls▁begin｜>": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
    f"{JSON}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "<｜tool▁calls▁begin｜> 3.1": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>"
    f"{JSON}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "<|python_tag|>": f"<|python_tag|>{LLAMA}",
    "ipython": LLAMA,
    "no tools": CALL,
}


def read(form: ToolFormat, text: str, size: int) -> tuple[str, list[tuple[str, Any]], bool]:
    """Content, calls, and whether there were any, of a text that comes `size` characters at a time."""
    reader = ToolCallReader(form)
    deltas = [delta for place in range(0, len(text), size) for delta in reader.push(text[place : place + size])]
    deltas += reader.finish()
    content = "".join(delta.get("content", "") for delta in deltas)
    calls: list[dict[str, str]] = []
    for change in (change for delta in deltas for change in delta.get("tool_calls", ())):
        if change["index"] == len(calls):
            assert change["type"] == "function" and re.fullmatch("[A-Z0-9]{9}", change["id"])
            calls.append({"name": change["function"]["name"], "arguments": ""})
        calls[change["index"]]["arguments"] += change["function"]["arguments"]
    return content, [(call["name"], json.loads(call["arguments"])) for call in calls], reader.has_calls


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize("template", FAMILIES)
def test_a_call_of_each_family(template: str, size: int) -> None:
    assert read(format_of(template), FAMILIES[template], size) == ("", [("weather", ARGUMENTS)], True)


@pytest.mark.parametrize("size", [1, 5, 1000])
@pytest.mark.parametrize("form", FORMATS, ids=[f"{index}-{form.name}" for index, form in enumerate(FORMATS)])
@pytest.mark.parametrize(
    "text", ["Hello <there>, a < b [x] {y}.", "No call", "<tool", "{not JSON", "[1, 2]", "<tool_call>x y"]
)
def test_text_that_is_not_a_call_stays(form: ToolFormat, text: str, size: int) -> None:
    assert read(form, text, size) == (text, [], False)


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_several_calls_after_a_word(size: int) -> None:
    text = f"I look.\n<tool_call>\n{CALL}\n</tool_call>\n<tool_call>\n{CALL}\n</tool_call>"
    content, calls, _ = read(format_of("<tool_call>"), text, size)
    assert content.strip() == "I look." and calls == [("weather", ARGUMENTS)] * 2


def test_text_is_held_back_only_as_long_as_needed() -> None:
    reader = ToolCallReader(format_of("<tool_call>"))
    assert list(reader.push("a <")) == [{"content": "a "}]
    assert list(reader.push("b")) == [{"content": "<b"}]
