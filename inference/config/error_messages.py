"""Reports all mistakes in a config in one line: the location of each, what is wrong, and the nearest known key.

Knows which keys exist; knows nothing about how values are validated.
"""

from __future__ import annotations

from dataclasses import is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import BaseModel

from inference.config.known_keys import NEGATED, NOT_ACTED_ON, RENAMED
from inference.config.layer import KeyPath, Layer, dotted
from inference.config.problems import Problem
from inference.config.schema import InferenceConfig
from inference.errors import ConfigError, did_you_mean

BASE_KEY = "base_config"
_MOST_SHOWN = 5  # mistakes that a message lists after the first
_MOST_READ = 20  # mistakes that get a message; the rest are only counted
# Sections in which to look for a misplaced key, likeliest first.
_LIKELY_SECTIONS = (
    "generation_config",
    "engine",
    "output",
    "context",
    "model.model_config",
    "processor.tokenizer",
)


def report(problems: list[Problem], layer: Layer) -> ConfigError:
    """Returns one error that lists all mistakes in a config on one line, in order of line number."""
    ordered = sorted(problems, key=lambda problem: _position(layer.origin(problem.path)))
    messages = list(dict.fromkeys(_message(problem, layer) for problem in ordered[:_MOST_READ]))
    number = max(len(messages), len(ordered) if len(ordered) > _MOST_READ else 0)
    if number == 1:
        return ConfigError(messages[0])
    more = "; ".join(messages[1 : 1 + _MOST_SHOWN]) + ("; ..." if len(messages) > 1 + _MOST_SHOWN else "")
    return ConfigError(f"{messages[0]}; and {number - 1:,} more: {more}")


def _position(origin: str) -> tuple[str, int]:
    name, _, line = origin.rpartition(":")
    return (name, int(line)) if line.isdigit() else (origin, 0)


def _message(problem: Problem, layer: Layer) -> str:
    where = layer.origin(problem.path)
    if not problem.unknown:
        return f"{where}: {problem.sentence()}"
    section, key = problem.path[:-1], str(problem.path[-1])
    place = f" in {dotted(section)}" if section else ""
    suggestion = _suggestion(section, key)
    return f"{where}: unknown key '{key}'{place}" + (f"; {suggestion}" if suggestion else "")


def _suggestion(section: KeyPath, key: str) -> str | None:
    """Suggests the same key in another section, or else the nearest key in this one."""
    for name in _LIKELY_SECTIONS:
        other = tuple(name.split("."))
        if other != section and key in known_keys(other):
            return f"did you mean '{name}.{key}'?"
    return did_you_mean(key, known_keys(section))


def known_keys(section: KeyPath) -> list[str]:
    """Lists the keys of a section: those in the schema first, then the known keys that have no effect."""
    kind: Any = InferenceConfig
    for name in section:
        # All sections in a mapping of sections have the same class.
        kind = get_args(kind)[1] if get_origin(kind) is dict else _section_types(kind).get(str(name))
    renamed = [str(old[-1]) for old in (*RENAMED, *NEGATED) if old[:-1] == section]
    base = [BASE_KEY] if not section else []
    return [*_section_types(kind), *base, *renamed, *sorted(NOT_ACTED_ON.get(section, ()))]


def _section_types(kind: Any) -> dict[str, Any]:
    """Maps each key of a section's class to its type; a key that is itself a section maps to that section's class."""
    if is_dataclass(kind):
        return get_type_hints(kind)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    return {}
