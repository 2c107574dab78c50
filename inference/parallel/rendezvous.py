"""How ranks find each other: each sends a short text and receives the texts of all.

Ranks that need MindSpore's own communication anyway (stock operators, Ascend) use it to exchange texts. Otherwise the
ranks meet at the scheduler process, whose address they all know. That takes milliseconds; MindSpore's cluster takes
seconds to come up, and half a minute to detect a lost worker.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from types import NoneType

from inference.errors import InferenceError, reason_of
from inference.parallel.channel import PeerLostError

# Takes this rank's text; returns the texts of all ranks in order.
Exchange = Callable[[str], list[str]]
_SIZE = struct.Struct("<I")
MOST = 1 << 16
# Seconds between attempts to reach a scheduler that is not listening yet.
RETRY = 0.05
# Seconds between checks for abandoned ranks.
LOOK = 0.5
# Seconds that a connected rank gets to send its text.
HELLO = 5.0
# Bytes of a text in a collective, where all ranks send the same number.
ROOM = 1024


def serve(
    address: tuple[str, int], world_size: int, patience: float, abandoned: Callable[[], bool] = lambda: False
) -> list[str]:
    """The scheduler's side: wait for the texts of all ranks, send all of them to each, and return them.

    A rank that has nothing to do, or cannot continue, sends None. Then the others are told so when they connect, and
    the result is empty.

    Args:
        abandoned: called regularly; returns True if no rank is left that could connect.

    Raises:
        InferenceError: the address is in use, or not all ranks connected in time.
    """
    deadline = time.monotonic() + patience
    texts: dict[int, str | None] = {}
    waiting: dict[int, socket.socket] = {}
    try:
        with socket.create_server(address, backlog=world_size) as server:
            while len(texts) < world_size:
                left = deadline - time.monotonic()
                ready = select.select([server, *waiting.values()], [], [], max(0, min(left, LOOK)))[0]
                if not ready and (left <= 0 or abandoned()):
                    missing = [rank for rank in range(world_size) if rank not in texts]
                    why = f"did not come in {patience:g} s" if left <= 0 else "have ended before all came together"
                    raise InferenceError(f"ranks {missing} {why}", "their logs say why")
                # A waiting rank sends nothing more, so a readable connection means that the rank has ended.
                for rank in [rank for rank, held in waiting.items() if held in ready]:
                    waiting.pop(rank).close()
                    texts[rank] = None
                if server in ready:
                    connection, _ = server.accept()
                    if came := _hello(connection, world_size):
                        rank, texts[rank] = came
                        waiting[rank] = connection
                if None in texts.values():
                    for rank in list(waiting):
                        with suppress(OSError), waiting.pop(rank) as connection:
                            _send(connection, json.dumps([]))
        everything = [text for _, text in sorted(texts.items()) if text is not None]
        if len(everything) < world_size:
            return []
        for connection in waiting.values():
            _send(connection, json.dumps(everything))
        return everything
    except OSError as error:
        raise InferenceError(f"the scheduler at {address[0]}:{address[1]} failed: {error}") from error
    finally:
        for connection in waiting.values():
            connection.close()


def _hello(connection: socket.socket, world_size: int) -> tuple[int, str | None] | None:
    """A rank and its text; None for a caller that is not a rank, since any process can connect to a port."""
    connection.settimeout(HELLO)
    try:
        rank, text = json.loads(_receive(connection))
        if rank in range(world_size) and isinstance(text, (str, NoneType)):
            return rank, text
    except (OSError, ValueError, TypeError):
        pass
    connection.close()
    return None


class NobodyNeededError(InferenceError):
    """Another rank has nothing to do, or cannot continue and has reported the reason."""


def meet(address: tuple[str, int], rank: int, text: str | None, patience: float) -> list[str]:
    """A rank's side of `serve`: return the texts of all ranks.

    Args:
        text: None if this rank does not take part, in which case no rank can.

    Raises:
        NobodyNeededError: a rank does not take part.
        PeerLostError: the scheduler does not answer, or not all ranks connected in time.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            connection = socket.create_connection(address, timeout=RETRY + patience)
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise PeerLostError(
                    f"no scheduler answers at {address[0]}:{address[1]} ({reason_of(error)})"
                ) from error
            time.sleep(RETRY)
    try:
        with connection:
            _send(connection, json.dumps([rank, text]))
            connection.settimeout(max(1.0, deadline - time.monotonic()))
            texts: list[str] = json.loads(_receive(connection))
    except (OSError, ValueError) as error:
        raise PeerLostError(
            f"not all ranks came together ({reason_of(error)})", "the scheduler's log says who is missing"
        ) from error
    if not texts:
        raise NobodyNeededError("a rank does not take part in this run", "its log says why")
    return texts


def through_mindspore(text: str) -> list[str]:
    """Exchange texts with a collective of MindSpore, whose communication must already be set up."""
    import mindspore
    import numpy as np
    from mindspore import nn, ops

    class Gather(nn.Cell):
        """Gathers the bytes of each rank [ROOM] into those of all ranks [ranks * ROOM]."""

        def __init__(self) -> None:
            super().__init__()
            self.gather = ops.AllGather()

        def construct(self, x: mindspore.Tensor) -> mindspore.Tensor:
            return self.gather(x)

    given = np.zeros(ROOM, np.int32)
    encoded = text.encode()
    assert len(encoded) <= ROOM, "a rank's text is too long"
    given[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    gathered = Gather()(mindspore.Tensor(given)).asnumpy().reshape(-1, ROOM)
    return [row.astype(np.uint8).tobytes().rstrip(b"\0").decode() for row in gathered]


def _send(connection: socket.socket, text: str) -> None:
    data = text.encode()
    connection.sendall(_SIZE.pack(len(data)) + data)


def _receive(connection: socket.socket) -> bytes:
    size = _SIZE.unpack(_read(connection, _SIZE.size))[0]
    if size > MOST * 64:
        raise ValueError("not a rank's message")
    return _read(connection, size)


def _read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise ConnectionResetError("the connection was closed")
        data += part
    return data
