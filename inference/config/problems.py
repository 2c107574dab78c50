"""Turns pydantic's errors into phrases that a user can act on.

Knows pydantic's error types; knows nothing about files, lines or which keys would have been right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from inference.config.layer import KeyPath, dotted
from inference.config.secrets import MASK, is_secret_name, without_password, without_secrets

_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
_LONGEST_VALUE = 60  # characters of a wrong value to repeat in a message
_PHRASES: dict[str, str] = {
    "int_type": "must be an integer",
    "int_from_float": "must be an integer",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be text (put it in quotes)",
    "list_type": "must be a list",
    "dict_type": "must be a mapping of keys",
    "model_type": "must be a section, a mapping of keys",
    "dataclass_type": "must be a section, a mapping of keys",
    "none_required": "must be empty",
}
_LIMITS: dict[str, tuple[str, str]] = {
    "greater_than": ("must be greater than", "gt"),
    "greater_than_equal": ("must be at least", "ge"),
    "less_than": ("must be less than", "lt"),
    "less_than_equal": ("must be at most", "le"),
}


@dataclass(frozen=True)
class Problem:
    """One wrong value.

    Args:
        path: key, from the root.
        phrase: what is wrong with it: `must be an integer, got 'two'`.
        unknown: whether the key itself is unknown.
        out_of_range: whether the value has the right type but is out of range.
    """

    path: KeyPath
    phrase: str
    unknown: bool = False
    out_of_range: bool = False

    def sentence(self) -> str:
        """Returns the key and what is wrong with it."""
        return f"{dotted(self.path)} {self.phrase}"


def problems_of(error: ValidationError) -> list[Problem]:
    """Lists all problems of one validation error, in pydantic's order."""
    return [_problem(finding) for finding in error.errors(include_url=False)]


def _problem(finding: Any) -> Problem:
    path = tuple(finding["loc"])
    if finding["type"] in _UNKNOWN:
        return Problem(path, "is not a known key", unknown=True)
    phrase, semicolon, reason = _phrase(finding).partition(";")
    is_secret = any(is_secret_name(str(key)) for key in path)
    given = MASK if is_secret else show(finding["input"])
    return Problem(path, f"{phrase}, got {given}{semicolon}{reason}", out_of_range=finding["type"] in _LIMITS)


def _phrase(finding: Any) -> str:
    kind, context = finding["type"], finding.get("ctx", {})
    if kind in _LIMITS:
        words, limit = _LIMITS[kind]
        bound = context[limit]
        return f"{words} {bound if isinstance(bound, int) else format(bound, 'g')}"
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        return f"must be {context['expected']}"
    return _PHRASES.get(kind) or _lowered(finding["msg"])


def _lowered(message: str) -> str:
    return message[:1].lower() + message[1:]


def show(value: Any) -> str:
    """Formats a wrong value for a message: as YAML spells it, without passwords, and shortened."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a mapping"
    shown = without_password(repr(without_secrets(value)))
    return shown if len(shown) <= _LONGEST_VALUE else f"{shown[:_LONGEST_VALUE]}..."
