"""Removes secrets (passwords, tokens and keys) from text and from printed settings.

Knows how secrets are spelled; knows nothing about who prints what.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from html import unescape
from typing import Any

MASK = "***"
# Length in characters from which a part of a secret is masked.
PART = 8
# A longer text is cut to this many characters before it is searched. Nobody reads that much of an error.
LONGEST = 256 << 10

# Escaped forms of one character: in JSON (escaped any number of times), in a URL, in HTML.
_ESCAPE = re.compile(
    r"""\\+u(?P<unicode>[0-9a-fA-F]{4})
      | \\+x(?P<hex>[0-9a-fA-F]{2})
      | %(?:25)*(?P<percent>[0-9a-fA-F]{2})
      | (?P<entity>&(?:\#[0-9]{1,7}|\#[xX][0-9a-fA-F]{1,6}|[a-zA-Z]{2,8});)
      | \\+(?P<plain>["'/\\])""",
    re.VERBOSE,
)
# Names of settings, headers and options whose values are secrets. `eos_token` and `max_tokens` are not secrets.
_NAME = re.compile(
    r"(?:^|[_\-.])(?:passw(?:or)?d|passphrase|secret|credentials?|authorization|api[_-]?key"
    r"|(?:access|account|private|secret|session|sas|auth|encryption)[_-]?key)s?$"
    r"|^token$|(?:access|api|auth|bearer|hf|hub|refresh|sas|security|session)[_-]token$"
    r"|(?:^|[_\-.])(?:secret|password|api[_-]?key)(?:[_\-.]|$)",
    re.IGNORECASE,
)
# User information before the host in a URL: "user:password@".
_IN_URL = re.compile(r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.\-]*://)[^/?#\s\"'@]*(?::[^/?#\s\"']*)?@")
_IN_QUERY = re.compile(r"(?P<name>[?&][A-Za-z0-9_.\-]+)=[^&#\s\"']+")
_OPTION = re.compile(r"(?P<flag>--?)(?P<name>[^=\s]+)(?P<value>=.*)?", re.DOTALL)


def redact(text: str, secret: str | None) -> str:
    """Masks a secret in a text, and every part of it of at least `PART` characters, however it is escaped.

    Call this before a text is shortened: a secret that the cut splits would not be found.
    """
    if not secret:
        return text
    shortened, text = len(text) > LONGEST, text[:LONGEST]
    size = min(len(secret), PART)
    lowered = secret.lower()
    parts = {lowered[start : start + size] for start in range(len(lowered) - size + 1)}
    hidden = bytearray(len(text))
    for characters, places in (_as_written(text), _decoded(text)):
        for start in range(len(characters) - size + 1):
            if characters[start : start + size] in parts:
                begin, end = places[start][0], places[start + size - 1][1]
                hidden[begin:end] = b"\x01" * (end - begin)
    return _masked(text, hidden) + ("..." if shortened else "")


def _as_written(text: str) -> tuple[str, Sequence[tuple[int, int]]]:
    return _one_for_one(text), [(place, place + 1) for place in range(len(text))]


def _one_for_one(text: str) -> str:
    """Lowercases a text without changing its number of characters."""
    lowered = text.lower()
    return lowered if len(lowered) == len(text) else "".join(c.lower() if c.isascii() else c for c in text)


def _decoded(text: str) -> tuple[str, Sequence[tuple[int, int]]]:
    """Decodes escapes and lowercases; returns the characters, and where each begins and ends in the text."""
    characters: list[str] = []
    places: list[tuple[int, int]] = []
    end = 0
    for found in _ESCAPE.finditer(text):
        for place in range(end, found.start()):
            characters.append(text[place])
            places.append((place, place + 1))
        end = found.end()
        for character in _meant(found):
            characters.append(character)
            places.append((found.start(), found.end()))
    for place in range(end, len(text)):
        characters.append(text[place])
        places.append((place, place + 1))
    return _one_for_one("".join(characters)), places


def _meant(found: re.Match[str]) -> str:
    code = found["unicode"] or found["hex"] or found["percent"]
    if code:
        return chr(int(code, 16))
    return found["plain"] or unescape(found["entity"])


def _masked(text: str, hidden: bytearray) -> str:
    def pieces() -> Iterator[str]:
        start = 0
        while start < len(text):
            end = hidden.find(b"\x01" if not hidden[start] else b"\x00", start)
            end = len(text) if end < 0 else end
            yield MASK if hidden[start] else text[start:end]
            start = end

    return "".join(pieces())


def hide_secrets(text: str, settings: Any = None) -> str:
    """Masks secrets in a message of code that is not ours: passwords in URLs, values of environment variables such as
    HF_TOKEN, and values of such keys in `settings`.

    Call this before the text is shortened.
    """
    for secret in dict.fromkeys((*_secrets_in(dict(os.environ)), *_secrets_in(settings))):
        text = redact(text, secret)
    return without_password(text)


def _secrets_in(settings: Any) -> Iterator[str]:
    """Yields the secrets in nested settings that are long enough not to be an ordinary word."""
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            if _holds_secret(key, value) and len(value) >= PART:
                yield value
            else:
                yield from _secrets_in(value)
    elif isinstance(settings, (list, tuple)):
        for item in settings:
            yield from _secrets_in(item)


def is_secret_name(name: str) -> bool:
    """Returns whether a setting, header or option of this name holds a secret: `api_key`, `s3_secret_access_key`."""
    return _NAME.search(name.lstrip("-")) is not None and not name.endswith("_variable")


def without_secrets(value: Any) -> Any:
    """Replaces secrets in settings by `***`: values of keys that name a secret, and user and password in URLs."""
    if isinstance(value, Mapping):
        return {key: MASK if _holds_secret(key, item) else without_secrets(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(without_secrets(item) for item in value) if type(value) in (list, tuple) else list(value)
    return without_password(value) if isinstance(value, str) else value


def _holds_secret(key: Any, value: Any) -> bool:
    return isinstance(value, str) and bool(value) and is_secret_name(str(key))


def without_password(text: str) -> str:
    """Masks the user, password, keys and signatures in the URLs of a text."""
    text = _IN_URL.sub(lambda found: f"{found['scheme']}{MASK}@", text)
    return _IN_QUERY.sub(lambda found: f"{found['name']}={MASK}" if _is_parameter(found["name"]) else found[0], text)


def _is_parameter(name: str) -> bool:
    bare = name.lstrip("?&")
    return bare.lower() in ("key", "sig", "signature", "code") or is_secret_name(bare)


def arguments_without_secrets(arguments: Sequence[str]) -> list[str]:
    """Replaces secrets in a command's arguments by `***`: `--api_key=x`, `--api_key x`, and passwords in URLs."""
    shown: list[str] = []
    is_secret = False
    for argument in arguments:
        option = _OPTION.fullmatch(argument)
        if option is None or not option["name"]:
            shown.append(MASK if is_secret else without_password(argument))
            is_secret = False
        elif option["value"] is not None and is_secret_name(option["name"]):
            shown.append(f"{option['flag']}{option['name']}={MASK}")
            is_secret = False
        else:
            shown.append(without_password(argument))
            is_secret = option["value"] is None and is_secret_name(option["name"])
    return shown
