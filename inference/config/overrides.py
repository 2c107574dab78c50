"""Settings from a command line: `a.b=c` as a typed value, and as a layer over the files.

Knows the text of one setting; knows nothing about which keys exist nor about click.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from inference.config.layer import KeyPath, Layer
from inference.config.yaml_file import read_flow
from inference.config.yaml_scalars import resolve_plain
from inference.errors import ConfigError

_UNSET = object()
_DEEPEST = 16  # levels of a dotted key
_NUMBER_LIST = re.compile(r"[^,\s]+(?:\s*,\s*[^,\s]+)+\Z")


@dataclass(frozen=True)
class Override:
    """One setting that outranks the files.

    Args:
        path: the key, dotted: `generation_config.top_k`.
        value: its value; text is also read as `parse_value` does where the key's type is not text.
        origin: the flag, for messages: `--top_k`.
        text: what was typed, where `value` was parsed from it.
    """

    path: str
    value: Any
    origin: str
    text: str | None = None

    def layer(self) -> Layer:
        """The layer of this one setting.

        Raises:
            ConfigError: `path` is not a dotted key.
        """
        path: KeyPath = tuple(self.path.split("."))
        if not all(path) or len(path) > _DEEPEST:
            raise ConfigError(f"{self.origin}: '{self.path}' is not a key", "write it as section.key")
        layer = Layer()
        layer.put(path, self.value)
        layer.origins = {path[:length]: self.origin for length in range(1, len(path) + 1)}
        alternative = self._other_reading()
        if alternative is not _UNSET:
            layer.alternatives[path] = alternative
        return layer

    def _other_reading(self) -> Any:
        if self.text is not None:
            return self.text if self.value != self.text else _UNSET
        return parse_value(self.value) if isinstance(self.value, str) else _UNSET


def parse_override(assignment: str, origin: str = "--options") -> Override:
    """Parses `a.b=c`.

    Raises:
        ConfigError: `assignment` has no `=` or no key before it.
    """
    path, equals, text = assignment.partition("=")
    path = path.strip()
    if not equals or not path:
        raise ConfigError(f"{origin}: '{assignment}' is not of the form key=value", "such as generation_config.top_k=3")
    return Override(path, parse_value(text), origin, text)


def parse_value(text: str) -> Any:
    """The value of text typed on a command line.

    Unquoted text is read as in YAML (`True`, `3`, `1e-5`, `null`), `[...]`, `{...}` and quoted text as YAML's
    flow style, which includes JSON; `1,2` is a list of numbers, as in MindFormers' `--options`. All else is
    text.
    """
    stripped = text.strip()
    if stripped[:1] in ("[", "{", '"', "'"):
        return _parse_flow(stripped, text)
    if _NUMBER_LIST.match(stripped):
        parts = [resolve_plain(part.strip()) for part in stripped.split(",")]
        return parts if all(type(part) in (int, float) for part in parts) else text
    value = resolve_plain(stripped)
    return text if isinstance(value, str) else value


def _parse_flow(flow: str, text: str) -> Any:
    try:
        return json.loads(flow)
    except (ValueError, RecursionError):
        pass  # YAML's flow style is wider: it needs no quotes
    try:
        return read_flow(flow)
    except ConfigError:
        return text
