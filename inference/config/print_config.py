"""Writes a config as YAML that loads as the same config, except for secrets; comments say where each key was set.

Knows how to write values; takes the keys from the given config.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any

import yaml
from pydantic import BaseModel

from inference.config.layer import KeyPath, Layer
from inference.config.secrets import without_secrets

_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*\Z")
# Sections in which an absent key does not mean its default: the model's own files decide.
_SPARSE: tuple[KeyPath, ...] = (("model", "model_config"), ("generation_config",))


def yaml_of(config: BaseModel, layer: Layer) -> str:
    """Formats `config`, whose settings came from `layer`, as YAML."""
    return "\n".join(_lines(_tree(config, layer.values, ()), layer, ())) + "\n"


def _tree(section: Any, given: dict[str, Any], path: KeyPath) -> dict[str, Any]:
    """Returns what to print: keys as they were set, then defaults, then keys that are not in the schema."""
    tree: dict[str, Any] = {}
    for name in _field_names(section):
        value, raw, here = getattr(section, name), given.get(name), (*path, name)
        if _is_section(value):
            tree[name] = _tree(value, raw if isinstance(raw, dict) else {}, here)
        elif raw is not None or (path in _SPARSE and name in given):
            tree[name] = raw
        elif path not in _SPARSE and value is not None:
            tree[name] = list(value) if isinstance(value, tuple) else value
    rest = {name: value for name, value in given.items() if name not in tree and value is not None}
    return {name: value for name, value in (tree | rest).items() if value != {} or name in rest}


def _field_names(section: Any) -> list[str]:
    fields = section.__dataclass_fields__ if is_dataclass(section) else type(section).model_fields
    return list(fields)


def _is_section(value: Any) -> bool:
    return isinstance(value, BaseModel) or is_dataclass(value)


def _lines(tree: dict[str, Any], layer: Layer, path: KeyPath) -> Iterator[str]:
    indent = "  " * len(path)
    for key, value in tree.items():
        here = (*path, key)
        if isinstance(value, dict) and value:
            yield f"{indent}{_key(key)}:"
            yield from _lines(value, layer, here)
        else:
            origin = layer.origin(here) if _is_set(layer, here) else "default"
            shown = without_secrets({key: value})[key]
            masked = "" if shown == value else "; a secret is not shown"
            yield f"{indent}{_key(key)}: {flow(shown)}  # {' '.join(origin.split())}{masked}"


def _is_set(layer: Layer, path: KeyPath) -> bool:
    parent = layer.get(path[:-1]) if len(path) > 1 else layer.values
    return isinstance(parent, dict) and path[-1] in parent


def _key(key: str) -> str:
    return key if _PLAIN_KEY.match(key) else _quoted(key)


def flow(value: Any) -> str:
    """Formats one value in YAML's flow style; text is always quoted, so that it stays text."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value) if abs(value) != float("inf") and value == value else f".{value:f}".replace(".-", "-.")
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(flow(item) for item in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_quoted(key)}: {flow(item)}" for key, item in value.items()) + "}"
    return str(value) if isinstance(value, int) else _quoted(str(value))


def _quoted(text: str) -> str:
    # PyYAML's emitter escapes every character that YAML requires to be escaped.
    dumped: str = yaml.dump(text, default_style='"', allow_unicode=True, width=float("inf"))
    return dumped.rstrip("\n")
