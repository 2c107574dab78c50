"""Ctrl-C, and the signals by which schedulers and closed terminals end a process: one line on stderr and the exit code
128 + number, whatever the process is doing.

MindSpore puts a handler of its own in the place of Python's for SIGINT each time a graph runs, and an exception that
passes through its import or its compiler leaves a crash, log lines and files behind. So nothing is raised: a thread
hears of the signals. SIGINT is blocked, and the thread waits for it. The others must not be blocked, for programs that
this one starts would inherit that and could not be ended; for them the thread reads what Python's own handler writes.
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

# What to call the end by each signal.
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}
# Held while a record is written: an interrupt waits until it is whole.
WRITING = threading.Lock()
# Seconds to wait for that; a pipe that nobody reads may block for ever.
PATIENCE = 1.0
# Taken by the thread that ends the process: one says why.
_ending = threading.Lock()
_last_words: list[Callable[[], str]] = []
_finishers: list[Callable[[], None]] = []
_interrupted: list[Callable[[], bool]] = []


@cache
def watch() -> None:
    """Ends the process on these signals from now on. To be called before other threads start: they inherit the mask."""
    # A shell that starts a job in the background has SIGINT ignored, nohup SIGHUP.
    heard = [number for number in WORDS if signal.getsignal(number) is not signal.SIG_IGN]
    # MindSpore would hear it where it is ignored, too.
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
        # Other handlers of Python's write there, too.
        numbers = (os.read(reader, 1)[0] for _ in count())
        _start(lambda: next(number for number in numbers if number in others))
        # What a child is sent is not this process' business.
        os.register_at_fork(after_in_child=lambda: _forget(others))


def _start(wait: Callable[[], int]) -> None:
    """A thread that ends the process by the signal that `wait` returns."""

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
    """What an early end has to add to its line meanwhile; `say` is called when no record is being written."""
    _last_words.append(say)
    try:
        yield
    finally:
        _last_words.remove(say)


@contextmanager
def interrupts(stop: Callable[[], bool]) -> Iterator[None]:
    """Meanwhile Ctrl-C calls `stop`, and ends the process only if that had nothing to stop and returns False."""
    _interrupted.append(stop)
    try:
        yield
    finally:
        _interrupted.remove(stop)


@contextmanager
def finishing(finish: Callable[[], None]) -> Iterator[None]:
    """Meanwhile a signal calls `finish` before it ends the process, so that what runs may come to its end. A second
    signal does not wait for that.
    """
    _finishers.append(finish)
    try:
        yield
    finally:
        with suppress(ValueError):
            _finishers.remove(finish)


def begin_end() -> bool:
    """Whether this thread is to say why the process ends; if not, waits for the one that says so to end it."""
    if _ending.acquire(blocking=False):
        return True
    # That one may wait for a pipe that nobody reads.
    time.sleep(PATIENCE)
    return False


def end(what: str, code: int) -> NoReturn:
    """Ends the process now, whatever its other threads do, with one line on stderr."""
    if not begin_end():
        os._exit(code)
    WRITING.acquire(timeout=PATIENCE)
    more = "".join(f"; {words}" for words in [say() for say in _last_words] if words)
    # On a terminal the cursor is after "^C", or in the middle of an answer.
    start = "\n" if os.isatty(2) else ""
    # The terminal may be gone.
    with suppress(OSError):
        os.write(2, f"{start}error: {what}{more}\n".encode())
    os._exit(code)
