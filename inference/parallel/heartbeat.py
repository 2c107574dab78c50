"""Heartbeats of the ranks of a parallel run, from which the launcher detects ranks that hang.

Each rank has a number in shared memory: the time of its last step, or the time since which it waits for work. Writing
it takes no system call. Without a launcher nothing is written. Uses the standard library only.
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
# Monotonic clock, seconds: time of the last step, or the negated time at which waiting for work began; initially 0.
_SIGN = struct.Struct("=d")


def busy() -> None:
    """Note the start or end of a step of work. If nothing follows, the rank counts as hanging."""
    _writer()(time.monotonic())


def idle() -> None:
    """Note that this rank waits for work."""
    _writer()(-time.monotonic())


class Pulses:
    """The heartbeats of all ranks, for the launcher.

    Attributes:
        fd: the shared memory, which each rank inherits.
    """

    def __init__(self, ranks: int):
        size = ranks * _SIGN.size
        self.fd = os.memfd_create("pulse", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, size)
        self._memory = mmap.mmap(self.fd, size)

    def silent_since(self, rank: int) -> float | None:
        """Time of the rank's last step, seconds of the monotonic clock: 0 if there was none, None while the rank
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
