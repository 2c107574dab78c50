"""Sends POST requests to an endpoint, each with one overall deadline.

Knows HTTP through httpx; knows nothing about the contents of requests. Does not follow redirects, which would send the
key to another host.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from inference.errors import ConfigError
from inference.remote.endpoint import Endpoint

if TYPE_CHECKING:
    import httpx

# Maximum size of a response, in bytes.
LONGEST = 32 << 20
# Seconds until an idle connection is closed.
KEEP = 60.0


class TransportError(Exception):
    """No complete response was received."""


@dataclass(frozen=True)
class Response:
    status: int
    retry_after: str | None
    body: bytes


@dataclass
class _Exchange:
    """The progress of one request."""

    opened_connection: bool = False
    received: int = 0
    expected: int | None = None
    parts: list[bytes] = field(default_factory=list)

    async def trace(self, event: str, about: Any) -> None:
        """Handles a trace event of httpx's transport."""
        if event == "connection.connect_tcp.started":
            self.opened_connection = True


class Transport:
    """A pool of connections to an endpoint, at most `concurrency` of them, shared by any number of threads.

    Connections are opened on demand and reused. Proxies in the environment (`https_proxy`, `http_proxy`, `all_proxy`,
    `no_proxy`; also with a user and a password) are respected. httpx's own timeouts apply to single reads, so a server
    that sends a byte now and then never exceeds them. Requests therefore run in an event loop in its own thread, where
    a deadline can cancel them at any point.

    Raises:
        ConfigError: the environment names a proxy or certificates that cannot be used.
    """

    def __init__(self, endpoint: Endpoint):
        import httpx

        self._endpoint, self._httpx = endpoint, httpx
        most = endpoint.concurrency
        limits = httpx.Limits(max_connections=most, max_keepalive_connections=most, keepalive_expiry=KEEP)
        try:
            self._client = httpx.AsyncClient(limits=limits, timeout=None)
        except Exception as error:  # httpx passes on any error of its parts; messages may contain a password
            raise ConfigError(
                f"remote: no connection can be set up ({type(error).__name__})",
                "look at http_proxy, https_proxy, all_proxy, SSL_CERT_FILE and SSL_CERT_DIR in the environment",
            ) from error
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="remote-http", daemon=True)
        self._thread.start()
        # Stop the thread when an unclosed transport is garbage-collected.
        weakref.finalize(self, _stop, self._loop)

    def post(self, body: bytes) -> Response:
        """Sends a request and reads its response.

        Raises:
            TransportError: the connection failed or was lost, or the request took longer than the endpoint's `timeout`.
        """
        return asyncio.run_coroutine_threadsafe(self._post(body), self._loop).result()

    def close(self) -> None:
        """Closes all connections."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._client.aclose(), self._loop).result()
        _stop(self._loop)
        self._thread.join()
        self._loop.close()

    async def _post(self, body: bytes) -> Response:
        httpx, seconds = self._httpx, self._endpoint.timeout
        exchange = _Exchange()
        try:
            return await asyncio.wait_for(self._tried(body, exchange), seconds)
        except (asyncio.TimeoutError, httpx.TimeoutException):
            raise TransportError(f"no whole response within {seconds:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            if exchange.received or exchange.expected is not None:
                of = "" if exchange.expected is None else f" of {exchange.expected}"
                raise TransportError(f"the response broke off after {exchange.received}{of} bytes") from error
            raise TransportError(f"no response: {_cause(error)}") from error

    async def _tried(self, body: bytes, exchange: _Exchange) -> Response:
        httpx = self._httpx
        try:
            return await self._sent(body, exchange)
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
            # A server may close an idle connection between two requests. It has not processed this request then.
            if exchange.opened_connection or exchange.received or exchange.expected is not None:
                raise
            return await self._sent(body, exchange)

    async def _sent(self, body: bytes, exchange: _Exchange) -> Response:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"}
        key = self._endpoint.key()
        if key:
            headers["Authorization"] = f"Bearer {key}"
        request = self._client.build_request(
            "POST", self._endpoint.target, content=body, headers=headers, extensions={"trace": exchange.trace}
        )
        response = await self._client.send(request, stream=True)
        try:
            await self._read(response, exchange)
        finally:
            await response.aclose()
        return Response(response.status_code, response.headers.get("Retry-After"), b"".join(exchange.parts))

    async def _read(self, response: httpx.Response, exchange: _Exchange) -> None:
        length = response.headers.get("Content-Length", "")
        exchange.expected = int(length) if length.isascii() and length.isdecimal() else None
        async for part in response.aiter_bytes():
            exchange.parts.append(part)
            exchange.received += len(part)
            if exchange.received > LONGEST:
                raise TransportError(f"the response is longer than {LONGEST >> 20} MiB")


def _stop(loop: asyncio.AbstractEventLoop) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(loop.stop)


def _cause(error: BaseException) -> str:
    """Returns the operating system's message for a failed connection, from the innermost cause of httpx's error."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError) and found.strerror:
            # asyncio replaces the system's message with its own.
            return os.strerror(found.errno) if found.errno and found.errno > 0 else found.strerror
        found = found.__cause__ or found.__context__ or _first_of_group(found)
    return str(error) or type(error).__name__


def _first_of_group(error: BaseException) -> BaseException | None:
    inner = getattr(error, "exceptions", ())
    return inner[0] if inner else None
