"""Where a remote model is, and how it may be used. Holds the name of the key's environment variable, never the key."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import SplitResult, urlsplit

from inference.errors import ConfigError, did_you_mean

APIS = {"chat": "/chat/completions", "completions": "/completions"}


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible endpoint.

    Args:
        url: its base, such as `http://127.0.0.1:8000/v1`.
        model: the name that the endpoint knows the model by.
        api: `chat` or `completions`.
        key_variable: environment variable that holds the key; read when the first request is made, on the machine that
            makes it. None where the endpoint needs no key.
        concurrency: the most requests that are under way.
        requests_per_second: the most that begin in a second; None for any number.
        max_retries: further tries of a row after the first.
        first_delay: seconds before the second try, about; each further one waits about twice as long.
        longest_delay: seconds that a try waits at most, also where the endpoint asks for more.
        timeout: seconds for a whole request, from its first byte to the last one of its response.
        extra: further keys of each request's body, such as `top_k` for an endpoint that takes it.

    Raises:
        ConfigError: a value that makes no sense.
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
            raise ConfigError("remote: model is missing", "give the name that the endpoint knows it by")
        if self.api not in APIS:
            raise ConfigError(f"remote: api is '{self.api}'", f"accepted: {' or '.join(APIS)}")
        parts = self._parts()
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"remote: '{self.url}' is no URL of an endpoint", "such as http://127.0.0.1:8000/v1")
        if parts.username or parts.password:
            raise ConfigError("remote: the URL has a user or a password in it", "name the key's variable instead")
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
        """From the keys of a config.

        Raises:
            ConfigError: a key that is unknown or missing, or a value that makes no sense.
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
            raise ConfigError(f"remote: a value is of the wrong type ({error})") from error

    def check_key(self) -> None:
        """Refuses to go on without the key, where one is named.

        Raises:
            ConfigError: the variable is not set.
        """
        key = self.key()
        if key is not None and not (key.isascii() and key.isprintable()):
            raise ConfigError(f"remote: the key in {self.key_variable} has characters that no header can hold")
        if self.key_variable and key is None:
            raise ConfigError(
                f"remote: the environment has no {self.key_variable}, the key of {self.host}",
                "set it, or name another with key_variable, or null where the endpoint needs none",
            )

    def key(self) -> str | None:
        """The key itself; not to be kept, logged or pickled."""
        return (os.environ.get(self.key_variable) or None) if self.key_variable else None

    @property
    def host(self) -> str:
        """Host and port, as in the URL."""
        return self._parts().netloc

    @property
    def is_encrypted(self) -> bool:
        return self._parts().scheme == "https"

    @property
    def path(self) -> str:
        """What is asked for."""
        return self._parts().path.rstrip("/") + APIS[self.api]

    def _parts(self) -> SplitResult:
        try:
            parts = urlsplit(self.url)
            _ = parts.port
        except (ValueError, AttributeError) as error:
            raise ConfigError(f"remote: '{self.url}' is no URL of an endpoint ({error})") from error
        return parts
