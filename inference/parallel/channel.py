"""Framed messages between two ranks over a TCP connection: a kind, plain fields, and numpy arrays.

A message is two little-endian uint32 (the sizes of its head and of its arrays in bytes), then the head (JSON: kind,
fields, types and shapes of the arrays), then the arrays' bytes in order. Nothing is unpickled. Never imports
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

from inference.errors import InferenceError, reason_of

_SIZES = struct.Struct("<II")
# Array types that a message may hold; any other means that it is damaged.
DTYPES = ("int32", "int64", "float32", "uint8", "bool")
# Seconds of silence before the system probes the other machine (TCP keep-alive), and the number of probes.
KEEPALIVE = ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))


class PeerLostError(InferenceError):
    """Another rank has ended, or its machine can no longer be reached."""


@dataclass(frozen=True)
class Message:
    """A message from one rank to another."""

    kind: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    arrays: tuple[np.ndarray, ...] = ()


class Channel:
    """One end of a connection between two ranks. One thread receives; any thread sends.

    Args:
        connection: a connected socket, which the channel then owns.
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
        """The file descriptor, for `select` and similar calls."""
        return self._socket.fileno()

    def send(self, kind: str, arrays: Sequence[np.ndarray] = (), **fields: Any) -> None:
        """Send a message; return once the system has accepted it.

        Args:
            arrays: arrays of the types in `DTYPES`.
            fields: values that JSON can hold.

        Raises:
            PeerLostError: the other rank has ended.
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
        """Wait for the next message.

        Args:
            timeout: seconds; None for no limit.

        Raises:
            PeerLostError: the other rank has ended.
            TimeoutError: no message started to arrive in time.
        """
        # Do not use the socket's own timeout, which would also apply to a sending thread.
        if timeout is not None and not select.select([self._socket], [], [], timeout)[0]:
            raise TimeoutError(f"rank {self.peer} said nothing for {timeout:g} s")
        try:
            head_size, body_size = _SIZES.unpack(self._read(_SIZES.size))
            kind, fields, shapes = json.loads(bytes(self._read(head_size)))
            return Message(kind, fields, _arrays(shapes, self._read(body_size)))
        except (OSError, ValueError, TypeError) as error:
            raise self._lost(error) from error

    def expect(self, kind: str, timeout: float | None = None) -> Message:
        """Receive a message of the given kind.

        Raises:
            PeerLostError: the other rank has ended, or sent another kind."""
        message = self.receive(timeout)
        if message.kind != kind:
            raise PeerLostError(f"rank {self.peer} sent '{message.kind}' where '{kind}' was expected")
        return message

    def close(self) -> None:
        """Close the connection; the other rank's `receive` then raises PeerLostError."""
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
        return PeerLostError(f"rank {self.peer} is gone ({reason_of(error)})", "its own log says why")


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
