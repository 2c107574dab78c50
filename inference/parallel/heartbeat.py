"""Heartbeats of the ranks of a parallel run, by which the launcher tells a rank that hangs from one that works.

Each rank has a number in shared memory: when it last did a step, or since when it waits for work. Writing it takes no
system call. Without a launcher nothing is written. Plain Python.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Callable
from functools import cache

# Set by the launcher for a rank: the file descriptor of the memory, and the rank.
VARIABLE = "INFERENCE_PULSE"
# Seconds of the system's monotonic clock: of the last step, or negative since the wait for work began; 0 at first.
_SIGN = struct.Struct("=d")


def busy() -> None:
    """Note that a step of work begins or is done. If nothing follows, this rank hangs."""
    _writer()(time.monotonic())


def idle() -> None:
    """Note that this rank waits for work."""
    _writer()(-time.monotonic())


class Pulses:
    """The heartbeats of all ranks, as the launcher sees them.

    Attributes:
        fd: the shared memory, which each rank inherits.
    """

    def __init__(self, ranks: int):
        size = ranks * _SIGN.size
        self.fd = os.memfd_create("pulse", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, size)
        self._memory = mmap.mmap(self.fd, size)

    def silent_since(self, rank: int) -> float | None:
        """When the rank's last step was, seconds of the monotonic clock: 0 if there was none, None while the rank
        waits for work.
        """
        (sign,) = _SIGN.unpack_from(self._memory, rank * _SIGN.size)
        return None if sign < 0 else float(sign)


@cache
def _writer() -> Callable[[float], None]:
    fd, _, rank = os.environ.get(VARIABLE, "").partition(":")
    if not rank:
        return lambda _: None
    memory, offset = mmap.mmap(int(fd), 0), int(rank) * _SIGN.size
    return lambda sign: _SIGN.pack_into(memory, offset, sign)
