"""Handles Ctrl-C and the signals that schedulers and closed terminals send: ends the process with one line on stderr
and exit code 128 + signal number, whatever the process is doing.

MindSpore replaces Python's SIGINT handler with its own each time a graph runs, and an exception that passes through its
import or its compiler causes a crash and leaves log lines and files behind. So handlers raise nothing; a thread
receives the signals. SIGINT is blocked, and a thread waits for it. The other signals must not be blocked, because child
processes would inherit the mask and could not be terminated; for them, a thread reads the signal numbers that Python's
own handler writes to a pipe.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from itertools import count
from typing import NoReturn

from inference.errors import SIGNALLED

# What to report for each signal.
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}
# Held while a record is written: an interrupt waits until the record is complete.
WRITING = threading.Lock()
# Seconds to wait for that; a pipe without a reader may block forever.
PATIENCE = 1.0
# Taken by the thread that ends the process, so that only one reports why.
_ending = threading.Lock()
_last_words: list[Callable[[], str]] = []
_finishers: list[Callable[[], None]] = []
_interrupted: list[Callable[[], bool]] = []


@cache
def watch() -> None:
    """Ends the process on these signals from now on. Call it before other threads start: they inherit the mask."""
    # A shell ignores SIGINT for background jobs; nohup ignores SIGHUP.
    heard = [number for number in WORDS if signal.getsignal(number) is not signal.SIG_IGN]
    # Block SIGINT even if it is ignored, because MindSpore would handle it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    if signal.SIGINT in heard:
        _start(lambda: signal.sigwait({signal.SIGINT}))
    others = [number for number in heard if number != signal.SIGINT]
    if others:
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in others:
            signal.signal(number, lambda *_: None)
        # Python's other signal handlers also write to this pipe.
        numbers = (os.read(reader, 1)[0] for _ in count())
        _start(lambda: next(number for number in numbers if number in others))
        # A forked child must not pass its signals to this process.
        os.register_at_fork(after_in_child=lambda: _forget(others))


def _start(wait: Callable[[], int]) -> None:
    """Starts a thread that ends the process when `wait` returns a signal."""

    def run() -> NoReturn:
        number = signal.Signals(wait())
        while number == signal.SIGINT and any(stop() for stop in _interrupted):
            number = signal.Signals(wait())
        if _finishers:
            # A second signal ends the process at once.
            _start(wait)
            finishers = _finishers.copy()
            _finishers.clear()
            for finish in finishers:
                finish()
        end(WORDS[number], SIGNALLED + number)

    threading.Thread(target=run, name="signals", daemon=True).start()


def _forget(numbers: Iterable[signal.Signals]) -> None:
    signal.set_wakeup_fd(-1)
    for number in numbers:
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def last_words(say: Callable[[], str]) -> Iterator[None]:
    """In this block, adds the text of `say` to the line of an early exit; calls it when no record is being written."""
    _last_words.append(say)
    try:
        yield
    finally:
        _last_words.remove(say)


@contextmanager
def interrupts(stop: Callable[[], bool]) -> Iterator[None]:
    """In this block, Ctrl-C calls `stop`; it ends the process only if `stop` returns False (there was nothing to
    stop).
    """
    _interrupted.append(stop)
    try:
        yield
    finally:
        _interrupted.remove(stop)


@contextmanager
def finishing(finish: Callable[[], None]) -> Iterator[None]:
    """In this block, a signal calls `finish` before it ends the process, so that running work can complete. A second
    signal ends the process without waiting.
    """
    _finishers.append(finish)
    try:
        yield
    finally:
        with suppress(ValueError):
            _finishers.remove(finish)


def begin_end() -> bool:
    """Returns whether this thread should report why the process ends; if not, first gives the thread that does time to
    end the process.
    """
    if _ending.acquire(blocking=False):
        return True
    # The reporting thread may block on a pipe without a reader.
    time.sleep(PATIENCE)
    return False


def end(what: str, code: int) -> NoReturn:
    """Ends the process now, whatever its other threads do, with one line on stderr."""
    if not begin_end():
        os._exit(code)
    WRITING.acquire(timeout=PATIENCE)
    more = "".join(f"; {words}" for words in [say() for say in _last_words] if words)
    # On a terminal, the cursor is after "^C" or in the middle of an answer.
    start = "\n" if os.isatty(2) else ""
    # The terminal may be gone.
    with suppress(OSError):
        os.write(2, f"{start}error: {what}{more}\n".encode())
    os._exit(code)
