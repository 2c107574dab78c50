"""Framed messages between two ranks over a TCP connection: a kind, plain fields, and numpy arrays.

A message is two little-endian uint32, the bytes of its head and those of its arrays, then the head (JSON: kind, fields,
types and shapes of the arrays), then the arrays' bytes one after the other. Nothing is unpickled. Never imports
mindspore.
"""

from __future__ import annotations

import json
import math
import select
import socket
import struct
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from inference.errors import InferenceError

_SIZES = struct.Struct("<II")
# Types that may cross; all others are a damaged message.
DTYPES = ("int32", "int64", "float32", "uint8", "bool")
# Seconds of silence after which the system asks whether the other machine is still there, and how often it asks.
KEEPALIVE = ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))


class PeerLostError(InferenceError):
    """Another rank ended, or its machine cannot be reached any more."""


@dataclass(frozen=True)
class Message:
    """What one rank tells another."""

    kind: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    arrays: tuple[np.ndarray, ...] = ()


class Channel:
    """One end of a connection between two ranks. One thread receives; any thread sends.

    Args:
        connection: connected; taken over.
        peer: the other rank.
    """

    def __init__(self, connection: socket.socket, peer: int):
        self.peer = peer
        self._socket = connection
        self._sending = threading.Lock()
        connection.settimeout(None)
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, seconds in KEEPALIVE:
                connection.setsockopt(socket.IPPROTO_TCP, option, seconds)

    def fileno(self) -> int:
        """For `select` and the like."""
        return self._socket.fileno()

    def send(self, kind: str, arrays: Sequence[np.ndarray] = (), **fields: Any) -> None:
        """Sends a message; returns when the system has taken it.

        Args:
            arrays: of the types in `DTYPES`.
            fields: what JSON can hold.

        Raises:
            PeerLostError: the other rank is not there any more.
        """
        shapes = [(array.dtype.name, array.shape) for array in arrays]
        head = json.dumps([kind, fields, shapes]).encode()
        body = b"".join(array.tobytes() for array in arrays)
        try:
            with self._sending:
                self._socket.sendall(_SIZES.pack(len(head), len(body)) + head + body)
        except OSError as error:
            raise self._lost(error) from error

    def receive(self, timeout: float | None = None) -> Message:
        """Waits for the next message.

        Args:
            timeout: seconds; None waits as long as it takes.

        Raises:
            PeerLostError: the other rank is not there any more.
            TimeoutError: no message began in time.
        """
        # Not by the socket's own timeout, which would hold for a thread that sends, too.
        if timeout is not None and not select.select([self._socket], [], [], timeout)[0]:
            raise TimeoutError(f"rank {self.peer} said nothing for {timeout:g} s")
        try:
            head_size, body_size = _SIZES.unpack(self._read(_SIZES.size))
            kind, fields, shapes = json.loads(bytes(self._read(head_size)))
            return Message(kind, fields, _arrays(shapes, self._read(body_size)))
        except (OSError, ValueError, TypeError) as error:
            raise self._lost(error) from error

    def expect(self, kind: str, timeout: float | None = None) -> Message:
        """Receives a message that can only be of one kind."""
        message = self.receive(timeout)
        if message.kind != kind:
            raise PeerLostError(f"rank {self.peer} sent '{message.kind}' where '{kind}' was expected")
        return message

    def close(self) -> None:
        """Ends the connection; the other rank's `receive` raises PeerLostError."""
        self._socket.close()

    def _read(self, size: int) -> memoryview:
        buffer = memoryview(bytearray(size))
        at = 0
        while at < size:
            count = self._socket.recv_into(buffer[at:])
            if not count:
                raise ConnectionResetError("the connection was closed")
            at += count
        return buffer

    def _lost(self, error: Exception) -> PeerLostError:
        return PeerLostError(f"rank {self.peer} is gone ({error})", "its own log says why")


def _arrays(shapes: Any, body: memoryview) -> tuple[np.ndarray, ...]:
    arrays, at = [], 0
    for name, shape in shapes:
        if name not in DTYPES:
            raise ValueError(f"an array of {name}")
        end = at + math.prod(shape) * np.dtype(name).itemsize
        arrays.append(np.frombuffer(body[at:end], name).reshape(shape) if end > at else np.empty(shape, name))
        at = end
    if at != len(body):
        raise ValueError(f"{len(body) - at} bytes too many")
    return tuple(arrays)
