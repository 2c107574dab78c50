"""Request limits: which clients are allowed, how long a body may be, and how many prompts may wait.

Knows limits; knows nothing about models.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starlette.requests import Request
from starlette.types import Receive

from inference.config.serve_settings import ServeSettings
from inference.serve.errors import RequestError
from inference.serve.listen import Listener

# Names of the loopback address in the Host header of browsers.
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")
# Seconds until a client may retry.
RETRY_AFTER = 1


class Admission:
    """Counts the running and waiting prompts, and rejects those beyond the limit."""

    def __init__(self, rows_at_once: int, max_waiting: int):
        self._limit = rows_at_once + max_waiting
        self._lock = threading.Lock()
        self.open = 0
        self.refused = 0

    @contextmanager
    def enter(self, rows: int) -> Iterator[None]:
        """Reserves a slot for each row of a request while the context is open.

        Raises:
            RequestError: status 429 if the server is busy; status 400 if the request alone exceeds the limit.
        """
        if rows > self._limit:
            raise RequestError(400, f"a request of {rows} prompts; this server takes at most {self._limit} at once")
        with self._lock:
            if self.open + rows > self._limit:
                self.refused += 1
                message = f"the server is busy: {self.open} prompts run or wait; try again in a moment"
                raise RequestError(429, message, code="queue_full", headers={"Retry-After": str(RETRY_AFTER)})
            self.open += rows
        try:
            yield
        finally:
            with self._lock:
                self.open -= rows


def check_client(request: Request, listener: Listener) -> None:
    """Rejects a client without the key. If no key is needed, rejects foreign web pages that use DNS rebinding.

    Raises:
        RequestError: status 401 or 403.
    """
    if listener.key is not None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not listener.key.matches(token.strip()):
            message = "the API key is missing or wrong; send it as 'Authorization: Bearer KEY'"
            raise RequestError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        return
    # In a DNS rebinding attack, the Host header carries the foreign page's name.
    host = request.headers.get("host", "")
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    if listener.loopback and name.lower() not in LOOPBACK_HOSTS:
        shown = host[:100].encode("ascii", "replace").decode()
        raise RequestError(403, f"the host '{shown}' is not this machine; ask {listener.url}", code="wrong_host")


async def read_body(request: Request, settings: ServeSettings) -> dict[str, Any]:
    """Reads the JSON object in a request's body.

    Raises:
        RequestError: the body is too long, arrives too slowly, or is not a JSON object.
        ClientDisconnect: the client disconnected.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # A foreign web page cannot send this content type without a CORS preflight.
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise RequestError(415, "the body must be JSON; send the header 'Content-Type: application/json'")
    try:
        data = await asyncio.wait_for(_collect(request, settings.max_body), settings.body_seconds)
    except asyncio.TimeoutError:
        raise RequestError(
            408, f"the body did not arrive within {settings.body_seconds:g} seconds", headers={"Connection": "close"}
        ) from None
    return parse_body(data)


async def _collect(request: Request, most: int) -> bytes:
    too_long = RequestError(
        413, f"the body is longer than {most} bytes (serve.max_body)", headers={"Connection": "close"}
    )
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > most:
        raise too_long
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise too_long
        parts.append(part)
    return b"".join(parts)


def parse_body(data: bytes) -> dict[str, Any]:
    """Parses the JSON object in a body.

    Raises:
        RequestError: the body is not UTF-8, not JSON, or not an object.
    """
    try:
        text = data.decode("utf-8-sig")
        # json.loads also accepts UTF-16, and lone surrogates, which no tokenizer can encode.
        body = json.loads(text, parse_constant=_no_constant)
        if "\\u" in text:
            json.dumps(body, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise RequestError(400, f"the body is not UTF-8: byte 0x{data[error.start]:02X} at {error.start}") from None
    except UnicodeEncodeError:
        raise RequestError(400, "the body has half a surrogate pair, which is not a character") from None
    except RecursionError:
        raise RequestError(400, "the body is nested too deeply") from None
    except ValueError as error:
        raise RequestError(400, f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise RequestError(400, "the body must be a JSON object")
    return body


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


async def wait_for_disconnect(receive: Receive) -> None:
    """Returns once the client has disconnected. The body must already have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
