"""Resolves plain scalars: the single set of rules for YAML files and the command line.

Knows null, booleans, numbers and text; knows nothing about files, keys or the schema. The rules are those of YAML 1.1
as implemented by PyYAML, and therefore MindFormers, with four differences: `1e-5` is a number, `None` is null,
`2024-01-01` stays text, and a number with a leading zero or a colon (octal and base 60 in YAML 1.1) stays text.
"""

from __future__ import annotations

import math
import re

_NULLS = frozenset({"", "~", "null", "Null", "NULL", "None"})
_BOOLEANS = {
    spelling: value
    for words, value in ((("true", "yes", "on"), True), (("false", "no", "off"), False))
    for word in words
    for spelling in (word, word.capitalize(), word.upper())
}
_DIGITS = r"[0-9]+(?:_[0-9]+)*"
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*(?:_[0-9]+)*|0x[0-9a-fA-F]+|0o[0-7]+)\Z")
_FLOAT = re.compile(rf"[-+]?(?:{_DIGITS}(?:\.(?:{_DIGITS})?)?|\.{_DIGITS})(?:[eE][-+]?[0-9]+)?\Z")
_SPECIAL_FLOAT = re.compile(r"([-+]?)\.(inf|nan)\Z", re.IGNORECASE)
_LONGEST_NUMBER = 400  # characters; longer than any float, below Python's limit for parsing an int


def resolve_plain(text: str) -> object:
    """Returns the value of unquoted `text`: None, a bool, an int, a float, or the text itself."""
    if text in _NULLS:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if len(text) > _LONGEST_NUMBER:
        return text
    return _number(text)


def _number(text: str) -> object:
    if _INTEGER.match(text):
        return int(text.replace("_", ""), 0)
    if _FLOAT.match(text) and not _has_leading_zero(text):
        return float(text.replace("_", ""))
    special = _SPECIAL_FLOAT.match(text)
    if special:
        return -math.inf if special.groups() == ("-", "inf") else float(special[2])
    return text


def _has_leading_zero(text: str) -> bool:
    digits = text.lstrip("+-")
    return len(digits) > 1 and digits[0] == "0" and digits[1].isdigit()
