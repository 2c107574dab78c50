"""Output of the ranks: copies rank 0's standard error as it arrives, follows all logs on request, and reads the end of
a log.

Knows files and terminals; knows nothing about processes.
"""

from __future__ import annotations

import fcntl
import os
import pty
import termios
import threading
import tty
from collections.abc import Callable, Iterable
from pathlib import Path

# Seconds between two checks of the logs.
INTERVAL = 0.1
# Number of bytes to read from a log to find its last lines.
END = 64 << 10


class Echo:
    """Copies everything written to `fd` to a log and to standard error.

    Args:
        log: the file to append to.
        shown: False copies to the log only.
    """

    def __init__(self, log: Path, shown: bool = True):
        self._log, self._shown = log, shown
        self._source, self.fd = self._open()
        self._thread = threading.Thread(target=self._copy, name="echo", daemon=True)

    def start(self) -> None:
        """Start copying. Call it once the writer has the other end, which this method closes."""
        os.close(self.fd)
        self._thread.start()

    def finish(self, seconds: float = 2.0) -> None:
        """Copy the remaining output after the writer has ended."""
        if self._thread.ident is not None:
            self._thread.join(seconds)

    def resize(self) -> None:
        """Tell the writer the size of the terminal."""
        if os.isatty(self._source):
            fcntl.ioctl(self._source, termios.TIOCSWINSZ, fcntl.ioctl(2, termios.TIOCGWINSZ, b"\0" * 8))

    def _open(self) -> tuple[int, int]:
        """The two ends of a pipe, or of a pseudo-terminal if stderr is a terminal, so that the writer can draw on
        it.
        """
        if not (self._shown and os.isatty(2)):
            return os.pipe()
        source, fd = pty.openpty()
        tty.setraw(fd)
        self._source = source
        self.resize()
        return source, fd

    def _copy(self) -> None:
        with self._log.open("ab", buffering=0) as log:
            while data := self._read():
                log.write(data)
                if self._shown:
                    self._shown = _wrote(data)

    def _read(self) -> bytes:
        try:
            return os.read(self._source, 1 << 16)
        except OSError:  # the writer has closed its terminal
            return b""


class Tail:
    """Shows new lines of logs on standard error, each prefixed with its rank."""

    def __init__(self, logs: Iterable[tuple[int, Path]]):
        self._logs = dict(logs)
        self._read: dict[int, int] = dict.fromkeys(self._logs, 0)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="tail", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Show the remaining lines and stop."""
        self._ended.set()
        self._thread.join()
        self._show(whole=False)

    def _follow(self) -> None:
        while not self._ended.wait(INTERVAL):
            self._show(whole=True)

    def _show(self, whole: bool) -> None:
        for rank, path in self._logs.items():
            data = _from(path, self._read[rank])
            data = data[: data.rfind(b"\n") + 1] if whole else data
            self._read[rank] += len(data)
            _wrote(b"".join(b"[%d] %s\n" % (rank, line) for line in data.splitlines()))


def last_lines(path: Path, count: int) -> list[str]:
    """The last non-blank lines of a log; none if there is no log."""
    size = path.stat().st_size if path.exists() else 0
    text = _from(path, max(size - END, 0)).decode("utf-8", "replace")
    return [line for line in text.splitlines() if line.strip()][-count:]


def size_of(path: Path) -> int:
    """The size of a file in bytes; 0 if it does not exist."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _from(path: Path, start: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read()
    except OSError:
        return b""


def _wrote(data: bytes, write: Callable[[int, bytes], int] = os.write) -> bool:
    """Write to standard error; False if its reader has closed it."""
    try:
        while data:
            data = data[write(2, data) :]
    except OSError:
        return False
    return True
