"""Settings from a command line: parses `a.b=c` into a typed value and a layer that overrides the files.

Knows the text of one setting; knows nothing about which keys exist or about click.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from inference.config.error_messages import known_keys
from inference.config.layer import KeyPath, Layer
from inference.config.yaml_file import read_flow
from inference.config.yaml_scalars import resolve_plain
from inference.errors import ConfigError

_UNSET = object()
_DEEPEST = 16  # levels of a dotted key
_NUMBER_LIST = re.compile(r"[^,\s]+(?:\s*,\s*[^,\s]+)+\Z")


@dataclass(frozen=True)
class Override:
    """One setting that overrides the files.

    Args:
        path: dotted key: `generation_config.top_k`.
        value: its value; if the key's type is not text, text is also parsed with `parse_value`.
        origin: flag to name in messages: `--top_k`.
        text: the typed text, if `value` was parsed from it.
    """

    path: str
    value: Any
    origin: str
    text: str | None = None

    def layer(self) -> Layer:
        """Returns a layer with this one setting.

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
        raise ConfigError(
            f"{origin}: '{assignment}' is not of the form key=value", "write it as generation_config.top_k=3"
        )
    return Override(_underscored(path), parse_value(text), origin, text)


def _underscored(path: str) -> str:
    """Replaces hyphens in the names of keys that are spelled with underscores: `generation-config.top-k`."""
    parts: list[str] = []
    for part in path.split("."):
        usual = part.replace("-", "_")
        known = known_keys(tuple(parts)) if usual != part else []
        parts.append(usual if usual in known and part not in known else part)
    return ".".join(parts)


def parse_value(text: str) -> Any:
    """Parses a value typed on a command line.

    Parses unquoted text as YAML does (`True`, `3`, `1e-5`, `null`), and `[...]`, `{...}` and quoted text as YAML's flow
    style, which includes JSON; `1,2` is a list of numbers, as in MindFormers' `--options`. Anything else is text.
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
        pass  # not JSON; YAML's flow style also allows unquoted text
    try:
        return read_flow(flow)
    except ConfigError:
        return text
