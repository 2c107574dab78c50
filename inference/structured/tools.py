"""The tools of a request: which may be called, and the grammar of a required call.

Knows OpenAI's `tools` and `tool_choice`; knows nothing about the format of a model's calls.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inference.errors import InputError, did_you_mean

CHOICES = ("none", "auto", "required")


@dataclass(frozen=True)
class Tools:
    """Tools that a request offers.

    Args:
        given: the tools as in the request; passed to the model's chat template.
        must: whether a tool must be called.
        name: the tool that must be called; None for any.
    """

    given: tuple[Mapping[str, Any], ...]
    must: bool = False
    name: str | None = None

    @property
    def names(self) -> list[str]:
        return [tool["function"]["name"] for tool in self.given]

    def schema(self) -> dict[str, Any] | None:
        """Returns the JSON schema of a required call or list of calls; None if no call is required."""
        if not self.must:
            return None
        calls = [_call_schema(tool["function"]) for tool in self.given if self.name in (None, tool["function"]["name"])]
        one = calls[0] if len(calls) == 1 else {"anyOf": calls}
        return one if self.name is not None else {"type": "array", "minItems": 1, "maxItems": 8, "items": one}


def read_tools(tools: Any, choice: Any) -> Tools | None:
    """Reads `tools` and `tool_choice`; returns None if no tool may be called.

    Raises:
        InputError: either is invalid.
    """
    if tools in (None, []):
        if choice not in (None, "none", "auto"):
            raise InputError("tool_choice asks for a call, and there are no tools", "give tools")
        return None
    if not isinstance(tools, Sequence) or isinstance(tools, str) or not all(map(_is_tool, tools)):
        raise InputError('tools must be a list of {"type": "function", "function": {"name", "parameters"}}')
    found = Tools(tuple(tools))
    if isinstance(choice, Mapping):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, Mapping) else None
        if name not in found.names:
            hint = did_you_mean(str(name), found.names) or f"there are: {', '.join(found.names)}"
            raise InputError(f"tool_choice names no tool '{name}'", hint)
        return Tools(found.given, True, name)
    if choice not in (None, *CHOICES):
        raise InputError(f"tool_choice is {choice!r}", f"accepted: {', '.join(CHOICES)}, or a function by its name")
    return None if choice == "none" else Tools(found.given, choice == "required")


def _is_tool(tool: Any) -> bool:
    function = tool.get("function") if isinstance(tool, Mapping) and tool.get("type") == "function" else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        return False
    return isinstance(function.get("parameters"), (Mapping, type(None)))


def _call_schema(function: Mapping[str, Any]) -> dict[str, Any]:
    parameters = function.get("parameters") or {"type": "object"}
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "arguments": json.loads(json.dumps(parameters))},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }
