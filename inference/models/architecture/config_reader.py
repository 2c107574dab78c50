"""Typed access to the keys of a model's config.

Knows types and what to say of a wrong one; knows no key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inference.errors import ConfigError


class Fields:
    """Typed access to the keys of a model's config, with errors that name `where` they came from."""

    def __init__(self, values: Mapping[str, Any], where: str):
        self._values = values
        self.where = where

    def error(self, key: str, accepted: str) -> ConfigError:
        return ConfigError(f"{self.where}: '{key}' is {self._values.get(key)!r}", f"it must be {accepted}")

    def get(self, key: str, default: Any = None) -> Any:
        value = self._values.get(key)
        return default if value is None else value

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.get(key, default)
        if value is None:
            raise ConfigError(f"{self.where}: '{key}' is missing", "the architecture cannot be built without it")
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise self.error(key, "a positive integer")
        return value

    def count(self, key: str) -> int:
        """An integer that may be 0, which it is where it is not given."""
        value = self.get(key, 0)
        if type(value) is not int or value < 0:
            raise self.error(key, "an integer that is not negative")
        return value

    def number(self, key: str, default: float) -> float:
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise self.error(key, "a positive number")
        return float(value)

    def optional_number(self, key: str) -> float | None:
        return None if self.get(key) is None else self.number(key, 1.0)

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, "true or false")
        return value
