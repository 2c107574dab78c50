"""One POST over a connection that is kept, within a deadline.

Knows HTTP through the standard library; knows nothing about what is sent. Redirects are not followed: they would take
the key elsewhere.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import time
import urllib.request
from dataclasses import dataclass

from inference.remote.endpoint import Endpoint

# The longest response that is read, bytes, and how much at once.
LONGEST = 32 << 20
CHUNK = 64 << 10


class TransportError(Exception):
    """No whole response came."""


@dataclass(frozen=True)
class Response:
    status: int
    retry_after: str | None
    body: bytes


class Connection:
    """A connection to an endpoint, opened when it is first needed and again after an error; for one thread at a time.
    A proxy that the environment names (`https_proxy`, `http_proxy`, `no_proxy`) is used.
    """

    def __init__(self, endpoint: Endpoint):
        self._endpoint = endpoint
        self._connection: http.client.HTTPConnection | None = None

    def post(self, body: bytes) -> Response:
        """Sends a request and reads its response.

        Raises:
            TransportError: the connection failed, broke off, or took longer than the endpoint's `timeout` in all.
        """
        deadline = time.monotonic() + self._endpoint.timeout
        is_fresh = self._connection is None
        try:
            try:
                response = self._sent(body, deadline)
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                # A server may close a kept connection between two requests; it has not looked at this one then.
                if is_fresh:
                    raise
                self.close()
                response = self._sent(body, deadline)
            return Response(response.status, response.getheader("Retry-After"), self._read(response, deadline))
        except TransportError:
            self.close()
            raise
        except TimeoutError:
            self.close()
            raise self._too_slow() from None
        except http.client.IncompleteRead as error:
            self.close()
            raise TransportError(f"the response broke off after {len(error.partial)} bytes") from error
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise TransportError(f"no response: {error or type(error).__name__}") from error

    def close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.close()
            self._connection = None

    def _sent(self, body: bytes, deadline: float) -> http.client.HTTPResponse:
        connection = self._connection = self._connection or self._open()
        connection.timeout = self._left(deadline)
        if connection.sock is not None:
            connection.sock.settimeout(connection.timeout)
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        key = self._endpoint.key()
        if key:
            headers["Authorization"] = f"Bearer {key}"
        connection.request("POST", self._target, body, headers)
        self._limit(connection, deadline)
        return connection.getresponse()

    def _read(self, response: http.client.HTTPResponse, deadline: float) -> bytes:
        parts, size = [], 0
        expected = response.length
        while True:
            if self._connection is not None:
                self._limit(self._connection, deadline)
            part = response.read1(CHUNK)
            if not part:
                break
            parts.append(part)
            size += len(part)
            if size > LONGEST:
                raise TransportError(f"the response is longer than {LONGEST >> 20} MiB")
        # read1 takes an end that comes too early for the end.
        if expected is not None and size < expected:
            raise TransportError(f"the response broke off after {size} of {expected} bytes")
        # Only then is the connection free for the next request.
        response.close()
        if response.will_close:
            self.close()
        return b"".join(parts)

    def _limit(self, connection: http.client.HTTPConnection, deadline: float) -> None:
        """Lets the next reading take what is left of the time: a server that sends a byte now and then ends too."""
        if isinstance(connection.sock, socket.socket):
            connection.sock.settimeout(self._left(deadline))

    def _left(self, deadline: float) -> float:
        left = deadline - time.monotonic()
        if left <= 0:
            raise self._too_slow()
        return left

    def _too_slow(self) -> TransportError:
        return TransportError(f"no whole response within {self._endpoint.timeout:g} s")

    def _open(self) -> http.client.HTTPConnection:
        endpoint = self._endpoint
        host = endpoint.host
        self._target = endpoint.path
        scheme = "https" if endpoint.is_encrypted else "http"
        proxy = None if urllib.request.proxy_bypass(host) else urllib.request.getproxies().get(scheme)
        at = proxy.rpartition("//")[2].rstrip("/") if proxy else host
        if endpoint.is_encrypted:
            secure = http.client.HTTPSConnection(at, context=ssl.create_default_context())
            if proxy:
                secure.set_tunnel(host)
            return secure
        if proxy:
            self._target = f"http://{host}{endpoint.path}"
        return http.client.HTTPConnection(at)
