"""Typed access to the keys of an object out of a file, with errors that name the file and the key.

Knows the table of readers (`values`); knows no key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from inference.errors import ConfigError, InferenceError
from inference.files.values import COUNT, EPSILON, FLAG, POSITIVE, SIZE, TEXT, Reader, shown

T = TypeVar("T")


class Fields:
    """The keys of an object; a key with null counts as missing.

    Args:
        where: the file to name in errors.
        kind: the error to raise.
    """

    def __init__(self, values: Mapping[str, Any], where: str, kind: type[InferenceError] = ConfigError):
        self._values = values
        self.where = where
        self._kind = kind

    def error(self, key: str, accepted: str) -> InferenceError:
        """The error for a key whose value is not accepted."""
        return self._kind(f"{self.where}: '{key}' is {shown(self._values.get(key))}", f"it must be {accepted}")

    def get(self, key: str, default: Any = None) -> Any:
        """The value as it is."""
        value = self._values.get(key)
        return default if value is None else value

    def read(self, key: str, reader: Reader[T]) -> T | None:
        """The value as a reader returns it; None if the key is missing."""
        value = self._values.get(key)
        return None if value is None else reader.read(value, f"{self.where}: '{key}'", self._kind)

    def read_or(self, key: str, reader: Reader[T], default: T) -> T:
        """The value as a reader returns it; the default if the key is missing."""
        value = self.read(key, reader)
        return default if value is None else value

    def integer(self, key: str, default: int | None = None, reader: Reader[int] = SIZE) -> int:
        """A positive integer, or what another reader accepts."""
        value = self.read(key, reader)
        if value is None:
            value = default
        if value is None:
            raise self._kind(f"{self.where}: '{key}' is missing", "the architecture cannot be built without it")
        return value

    def count(self, key: str) -> int:
        """An integer that may be 0, and is 0 if the key is missing."""
        return self.read_or(key, COUNT, 0)

    def number(self, key: str, default: float) -> float:
        """A positive finite number."""
        return self.read_or(key, POSITIVE, default)

    def epsilon(self, key: str, default: float) -> float:
        """What a norm adds to the variance."""
        return self.read_or(key, EPSILON, default)

    def optional_number(self, key: str) -> float | None:
        """A positive finite number; None if the key is missing."""
        return self.read(key, POSITIVE)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        return self.read_or(key, FLAG, default)

    def text(self, key: str, default: str) -> str:
        """Text that UTF-8 can spell."""
        return self.read_or(key, TEXT, default)
