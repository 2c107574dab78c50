"""The tools of a request: which may be called, and the grammar of a required call.

Knows OpenAI's `tools` and `tool_choice`; knows nothing about the format of a model's calls.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from inference.errors import InputError, did_you_mean

CHOICES = ("none", "auto", "required")
# White space allowed in a required call: only what most models' training data has.
SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# Maximum number of calls in an answer that must call tools.
MOST_CALLS = 8


@dataclass(frozen=True)
class Tools:
    """Tools that a request offers.

    Args:
        given: the tools as in the request; passed to the model's chat template.
        must: whether a tool must be called.
        name: the tool that must be called; None for any.
        parallel: whether an answer may call several tools.
    """

    given: tuple[Mapping[str, Any], ...]
    must: bool = False
    name: str | None = None
    parallel: bool = True

    @property
    def names(self) -> list[str]:
        return [tool["function"]["name"] for tool in self.given]

    def schema(self) -> dict[str, Any] | None:
        """Returns the JSON schema of a required call or list of calls; None if no call is required."""
        if not self.must:
            return None
        functions = [tool["function"] for tool in self.given if self.name in (None, tool["function"]["name"])]
        calls = [_call_schema(function, f"arguments{index}") for index, function in enumerate(functions)]
        one = calls[0] if len(calls) == 1 else {"anyOf": calls}
        if self.name is None and self.parallel:
            one = {"type": "array", "minItems": 1, "maxItems": MOST_CALLS, "items": one}
        return {
            **one,
            "x-guidance": SPACING,
            "$defs": {f"arguments{index}": _arguments(item, index) for index, item in enumerate(functions)},
        }

    def describe(self) -> str:
        """Describes the tools to a model whose chat template does not."""
        functions = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in self.given)
        return (
            "You can call these functions:\n"
            f"{functions}\n"
            'To call one, answer only with JSON: {"name": the function, "arguments": {its arguments}}.'
        )


def read_tools(tools: Any, choice: Any, parallel: Any = None) -> Tools | None:
    """Reads `tools`, `tool_choice` and `parallel_tool_calls`; returns None if no tool may be called.

    Raises:
        InputError: one of them is invalid.
    """
    if parallel not in (None, True, False):
        raise InputError("parallel_tool_calls must be true or false")
    if choice == "none":
        return None
    if tools in (None, []):
        if choice not in (None, "auto"):
            raise InputError("tool_choice requires a call, but there are no tools", "give tools")
        return None
    if not isinstance(tools, Sequence) or isinstance(tools, str) or not all(map(_is_tool, tools)):
        raise InputError('tools must be a list of {"type": "function", "function": {"name", "parameters"}}')
    found = Tools(tuple(tools), parallel=parallel is not False)
    if isinstance(choice, Mapping):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, Mapping) else None
        if name not in found.names:
            hint = did_you_mean(str(name), found.names) or f"there are: {', '.join(found.names)}"
            raise InputError(f"tool_choice names no tool '{name}'", hint)
        return replace(found, must=True, name=name)
    if choice not in (None, *CHOICES):
        raise InputError(f"tool_choice is {choice!r}", f"accepted: {', '.join(CHOICES)}, or a function by its name")
    return replace(found, must=choice == "required")


def _is_tool(tool: Any) -> bool:
    function = tool.get("function") if isinstance(tool, Mapping) and tool.get("type") == "function" else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        return False
    return isinstance(function.get("parameters"), (Mapping, type(None)))


def _call_schema(function: Mapping[str, Any], arguments: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "arguments": {"$ref": f"#/$defs/{arguments}"}},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _arguments(function: Mapping[str, Any], index: int) -> Any:
    """Returns the schema of a function's arguments, to put under `$defs` of the whole schema."""
    # As in OpenAI's API, a function without parameters takes no arguments.
    parameters = function.get("parameters") or {"type": "object", "properties": {}, "additionalProperties": False}
    return _with_references(parameters, f"#/$defs/arguments{index}")


def _with_references(schema: Any, root: str) -> Any:
    """Returns a schema whose references still resolve after it has moved to `root`."""
    if isinstance(schema, Mapping):
        return {
            key: root + value[1:]
            if key == "$ref" and isinstance(value, str) and value.startswith("#")
            else _with_references(value, root)
            for key, value in schema.items()
        }
    return [_with_references(item, root) for item in schema] if isinstance(schema, (list, tuple)) else schema
