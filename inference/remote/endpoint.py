"""An endpoint's address and limits. Holds the name of the key's environment variable, never the key."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import SplitResult, urlsplit

from inference.config.secrets import redact, without_password
from inference.errors import ConfigError, did_you_mean

APIS = {"chat": "/chat/completions", "completions": "/completions"}


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible endpoint.

    Args:
        url: base URL, such as `http://127.0.0.1:8000/v1`. A query (`?api-version=...`) is kept.
        model: the endpoint's name for the model.
        api: `chat` or `completions`.
        key_variable: environment variable that holds the key. It is read on the machine that sends the requests. None
            if the endpoint needs no key.
        concurrency: maximum number of requests in flight.
        requests_per_second: maximum number of requests started per second; None for no limit.
        max_retries: retries of a row after its first request.
        first_delay: approximate seconds before the first retry; each further retry waits about twice as long.
        longest_delay: maximum seconds before a retry, even if the endpoint asks for more.
        timeout: seconds for a whole request, from opening the connection to the last byte of the response.
        extra: further keys of each request's body, such as `top_k` for an endpoint that supports it.

    Raises:
        ConfigError: a value is invalid.
    """

    url: str
    model: str
    api: str = "chat"
    key_variable: str | None = "OPENAI_API_KEY"
    concurrency: int = 8
    requests_per_second: float | None = None
    max_retries: int = 5
    first_delay: float = 0.5
    longest_delay: float = 60.0
    timeout: float = 120.0
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model:
            raise ConfigError("remote: model is missing", "give the endpoint's name for it")
        if self.api not in APIS:
            raise ConfigError(f"remote: api is '{self.api}'", f"accepted: {' or '.join(APIS)}")
        parts = self._parts()
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(
                f"remote: '{without_password(self.url)}' is not the URL of an endpoint",
                "give one such as http://127.0.0.1:8000/v1",
            )
        if parts.username or parts.password:
            raise ConfigError(
                "remote: the URL contains a user or a password",
                "put the key into a variable and name it with key_variable",
            )
        at_least = (("concurrency", 1), ("max_retries", 0), ("first_delay", 0), ("longest_delay", 0))
        for name, least in at_least:
            if getattr(self, name) < least:
                raise ConfigError(f"remote: {name} is {getattr(self, name)}", f"at least {least}")
        for name in ("timeout", "requests_per_second"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"remote: {name} is {value}", "it must be above 0")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Endpoint:
        """Build an endpoint from the keys of a config.

        Raises:
            ConfigError: a key is unknown or missing, or a value is invalid.
        """
        known = [item.name for item in fields(cls)]
        for name in values:
            if name not in known:
                raise ConfigError(f"remote: unknown key '{name}'", did_you_mean(name, known) or f"known: {known}")
        for name in ("url", "model"):
            if name not in values:
                raise ConfigError(f"remote: {name} is missing")
        try:
            return cls(**values)
        except TypeError as error:
            raise ConfigError(f"remote: a value has the wrong type ({error})") from error

    def check_key(self) -> None:
        """Check that the key is set if the endpoint needs one.

        Raises:
            ConfigError: the variable is not set, or its value cannot be sent in a header.
        """
        key = self.key()
        if key is not None and not (key.isascii() and key.isprintable()):
            raise ConfigError(
                f"remote: the key in {self.key_variable} contains characters that no HTTP header can hold"
            )
        if self.key_variable and key is None:
            raise ConfigError(
                f"remote: {self.key_variable} is not set; it holds the key of {self.host}",
                "set it, name another variable with key_variable, or give null if the endpoint needs no key",
            )

    def key(self) -> str | None:
        """The key itself. Never keep, log or pickle it."""
        return (os.environ.get(self.key_variable) or None) if self.key_variable else None

    @property
    def host(self) -> str:
        """Host and port, as in the URL."""
        return self._parts().netloc

    @property
    def target(self) -> str:
        """The URL that requests go to."""
        parts = self._parts()
        return parts._replace(path=parts.path.rstrip("/") + APIS[self.api], fragment="").geturl()

    def redacted(self, text: str) -> str:
        """Remove the key from a text. Call this before shortening the text."""
        return redact(text, self.key())

    def _parts(self) -> SplitResult:
        try:
            parts = urlsplit(self.url)
            _ = parts.port
        except (ValueError, AttributeError) as error:
            shown = without_password(str(self.url))
            raise ConfigError(f"remote: '{shown}' is not the URL of an endpoint ({type(error).__name__})") from None
        return parts
