"""Ctrl-C and SIGTERM: one line on stderr and exit code 130 or 143, whatever the process is doing.

MindSpore puts a handler of its own in the place of Python's each time a graph runs, and an exception that passes
through its import or its compiler leaves a crash, log lines and files behind. So the signals are blocked, and a thread
waits for them.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from functools import cache
from typing import NoReturn

# What is said of each signal, and the exit code: a shell's for a process that the signal killed.
SIGNALS = {signal.SIGINT: ("interrupted", 130), signal.SIGTERM: ("terminated", 143)}
# Held while a record is written: an interrupt waits until it is whole.
WRITING = threading.Lock()
# Seconds to wait for that; a pipe that nobody reads may block for ever.
PATIENCE = 1.0
_last_words: list[Callable[[], str]] = []


@cache
def watch() -> None:
    """Ends the process on these signals from now on. To be called before other threads start: they inherit the mask."""
    # A shell that starts a job in the background has SIGINT ignored.
    watched = {number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN}
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    threading.Thread(target=_wait, args=(watched,), name="interrupt", daemon=True).start()


@contextmanager
def last_words(say: Callable[[], str]) -> Iterator[None]:
    """What an early end has to add to its line meanwhile; `say` is called when no record is being written."""
    _last_words.append(say)
    try:
        yield
    finally:
        _last_words.remove(say)


def _wait(watched: Set[signal.Signals]) -> None:
    end(*SIGNALS[signal.Signals(signal.sigwait(watched))])


def end(what: str, code: int) -> NoReturn:
    """Ends the process now, whatever its other threads do, with one line on stderr."""
    WRITING.acquire(timeout=PATIENCE)
    more = "".join(f"; {words}" for words in [say() for say in _last_words] if words)
    # On a terminal the cursor is after "^C", or in the middle of an answer.
    start = "\n" if os.isatty(2) else ""
    os.write(2, f"{start}error: {what}{more}\n".encode())
    os._exit(code)
