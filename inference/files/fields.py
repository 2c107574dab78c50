"""Typed access to the keys of an object read from a file, with errors that name the file and the key.

Knows the table of readers (`values`); knows no key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from inference.errors import ConfigError, InferenceError
from inference.files.values import COUNT, EPSILON, FLAG, POSITIVE, SIZE, TEXT, Reader, shown

T = TypeVar("T")


class Fields:
    """The keys of an object; a null key counts as missing.

    Args:
        where: file to name in errors.
        kind: class of the errors to raise.
    """

    def __init__(self, values: Mapping[str, Any], where: str, kind: type[InferenceError] = ConfigError):
        self._values = values
        self.where = where
        self._kind = kind

    def error(self, key: str, accepted: str) -> InferenceError:
        """Returns the error for a key whose value is not accepted."""
        return self._kind(f"{self.where}: '{key}' is {shown(self._values.get(key))}", f"it must be {accepted}")

    def get(self, key: str, default: Any = None) -> Any:
        """Returns the value unchecked; the default if the key is missing."""
        value = self._values.get(key)
        return default if value is None else value

    def read(self, key: str, reader: Reader[T]) -> T | None:
        """Returns the value as a reader converts it; None if the key is missing."""
        value = self._values.get(key)
        return None if value is None else reader.read(value, f"{self.where}: '{key}'", self._kind)

    def read_or(self, key: str, reader: Reader[T], default: T) -> T:
        """Returns the value as a reader converts it; the default if the key is missing."""
        value = self.read(key, reader)
        return default if value is None else value

    def integer(self, key: str, default: int | None = None, reader: Reader[int] = SIZE) -> int:
        """Returns a positive integer, or whatever another reader accepts."""
        value = self.read(key, reader)
        if value is None:
            value = default
        if value is None:
            raise self._kind(f"{self.where}: '{key}' is missing", "the architecture cannot be built without it")
        return value

    def count(self, key: str) -> int:
        """Returns an integer from 0; 0 if the key is missing."""
        return self.read_or(key, COUNT, 0)

    def number(self, key: str, default: float) -> float:
        """Returns a positive finite number."""
        return self.read_or(key, POSITIVE, default)

    def epsilon(self, key: str, default: float) -> float:
        """Returns the epsilon that a norm adds to the variance."""
        return self.read_or(key, EPSILON, default)

    def optional_number(self, key: str) -> float | None:
        """Returns a positive finite number; None if the key is missing."""
        return self.read(key, POSITIVE)

    def flag(self, key: str, default: bool) -> bool:
        """Returns a boolean."""
        return self.read_or(key, FLAG, default)

    def text(self, key: str, default: str) -> str:
        """Returns text that UTF-8 can encode."""
        return self.read_or(key, TEXT, default)
