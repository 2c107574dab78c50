"""The table of typed readers for values read from files: each knows what it accepts and how to describe that.

A reader takes an unchecked value (from JSON, a GGUF field, a header) and returns it with a known type, or raises the
caller's error with the name of the value, the value, and what is accepted.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from inference.errors import ConfigError, InferenceError

T = TypeVar("T")
# Sizes, positions and token ids are int32 in the kernels and in every supported file format.
LARGEST = 2**31 - 1
# The range of normal float32 numbers, in which the kernels compute.
SMALLEST_FLOAT, LARGEST_FLOAT = 1.2e-38, 3.4e38


def shown(value: Any) -> str:
    """Formats a value for an error message, shortened so that a damaged file cannot fill the screen."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 80
    short.maxlist = short.maxdict = 4
    return short.repr(value)


@dataclass(frozen=True)
class Reader(Generic[T]):
    """Checks and converts one value.

    Args:
        accepted: what it accepts, as a noun phrase ("a positive integer").
        takes: returns whether it accepts a value, which may be of any type.
        convert: converts an accepted value to the result.
    """

    accepted: str
    takes: Callable[[Any], bool]
    convert: Callable[[Any], T]

    def read(self, value: Any, name: str, error: type[InferenceError] = ConfigError) -> T:
        """Checks and converts a value.

        Args:
            name: name of the value in the error: the file and the key.

        Raises:
            error: the value has the wrong type or is out of range.
        """
        if not self.takes(value):
            raise error(f"{name} is {shown(value)}", f"it must be {self.accepted}")
        return self.convert(value)


def is_integer(value: Any, low: int = 0, high: int = LARGEST) -> bool:
    """Returns whether a value is an integer from `low` to `high`; booleans are not integers."""
    return type(value) is int and low <= value <= high


def is_number(value: Any, low: float, high: float) -> bool:
    """Returns whether a value is a finite number from `low` to `high`; booleans are not numbers."""
    return type(value) in (int, float) and low <= value <= high and math.isfinite(value)


def is_text(value: Any) -> bool:
    """Returns whether a value is text that UTF-8 can encode; JSON can hold a lone surrogate, which is not a
    character.
    """
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def integer(low: int, high: int = LARGEST, accepted: str | None = None) -> Reader[int]:
    """Makes a reader of integers from `low` to `high`, inclusive."""
    known = accepted or (f"an integer of {low} or more" if high == LARGEST else f"an integer from {low} to {high}")
    return Reader(known, lambda value: is_integer(value, low, high), int)


def number(low: float, high: float, accepted: str) -> Reader[float]:
    """Makes a reader of finite numbers from `low` to `high`, inclusive."""
    return Reader(accepted, lambda value: is_number(value, low, high), float)


def list_of(reader: Reader[T], accepted: str) -> Reader[list[T]]:
    """Makes a reader of lists (or tuples) of items that another reader accepts."""
    return Reader(
        accepted,
        lambda value: isinstance(value, (list, tuple)) and all(reader.takes(item) for item in value),
        lambda value: [reader.convert(item) for item in value],
    )


# An offset or a length in a file.
BYTES = integer(0, 2**63 - 1, "an integer from 0 to 2^63 - 1")
SIZE = integer(1, accepted="a positive integer below 2^31")
COUNT = integer(0, accepted="an integer from 0 to 2^31 - 1")
TOKEN_ID = integer(0, accepted="a token id: an integer from 0 to 2^31 - 1")
POSITIVE = number(SMALLEST_FLOAT, LARGEST_FLOAT, "a positive number that float32 holds")
FRACTION = number(SMALLEST_FLOAT, 1.0, "a number above 0 and at most 1")
# Added to a variance: a value of 1 or more would flatten the normalized values.
EPSILON = number(SMALLEST_FLOAT, 0.999, "a number above 0 and below 1")
FLAG: Reader[bool] = Reader("true or false", lambda value: isinstance(value, bool), bool)
TEXT: Reader[str] = Reader("text in valid Unicode", is_text, str)
# Limited because searching texts for a token takes time quadratic in the token's length.
TOKEN_TEXT: Reader[str] = Reader(
    "text in valid Unicode of at most 1000 characters", lambda value: is_text(value) and len(value) <= 1000, str
)
INTEGERS = list_of(COUNT, "a list of integers from 0 to 2^31 - 1")
TEXTS = list_of(TEXT, "a list of texts")
# One id or several: configs contain both forms.
TOKEN_IDS: Reader[list[int]] = Reader(
    "a token id or a list of token ids",
    lambda value: TOKEN_ID.takes(value) or list_of(TOKEN_ID, "").takes(value),
    lambda value: list(value) if isinstance(value, (list, tuple)) else [value],
)
