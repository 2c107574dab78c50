"""The progress display for loading, batch jobs, pipelines and evaluation: in place on a terminal (tqdm), occasional
plain lines elsewhere.

Knows terminals and time; the callers provide the lines.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import Any, TextIO

# Seconds between lines: on a terminal, and elsewhere at the start.
REFRESH = 0.25
INTERVAL = 10.0
# Elsewhere, the interval grows to this share of the elapsed time, and to this many seconds at most.
SHARE = 0.1
LONGEST = 300.0
# Seconds between plain lines while a file is loading.
LOADING = 5.0


class ProgressLine:
    """A line of text that is updated repeatedly.

    Args:
        file: stream to write to, usually stderr.
        in_place: whether to overwrite the line; requires a terminal.
        interval: seconds between lines.
    """

    def __init__(self, file: TextIO, in_place: bool, interval: float | None = None):
        self._file, self._in_place = file, in_place
        self._interval = interval or (REFRESH if in_place else INTERVAL)
        self._fixed = in_place or interval is not None
        self._is_shown = False
        self.restart()

    def restart(self) -> None:
        """Schedules the next line one interval from now."""
        self._next = time.perf_counter() + self._interval

    @property
    def is_due(self) -> bool:
        """Returns whether it is time for the next line."""
        return time.perf_counter() >= self._next

    def show(self, text: str, seconds: float) -> None:
        """Shows the line, `seconds` after the work started."""
        pause = self._interval if self._fixed else min(max(self._interval, seconds * SHARE), LONGEST)
        self._next = time.perf_counter() + pause
        if self._in_place:
            width = shutil.get_terminal_size().columns - 1
            self._file.write(f"\r{text[:width]}\x1b[K")
            self._file.flush()
            self._is_shown = True
        else:
            self._file.write(f"{text}\n")
            self._file.flush()

    def clear(self) -> None:
        """Clears a line shown in place, so that other output can be written."""
        if self._is_shown:
            self._file.write("\r\x1b[K")
            self._file.flush()
            self._is_shown = False


def byte_progress(file: TextIO, total: int) -> Callable[[str, int], None]:
    """Returns a callback that shows load progress; it takes a file name and the number of bytes read from that file."""
    return _byte_bar(file, total) if file.isatty() else _byte_lines(file, total)


def _byte_bar(file: TextIO, total: int) -> Callable[[str, int], None]:
    bar = _bar(file, total=total, unit="B", unit_scale=True, unit_divisor=1024)

    def advance(name: str, size: int) -> None:
        bar.set_description(name, refresh=False)
        bar.update(size)
        if bar.n >= total:
            bar.close()

    return advance


def _byte_lines(file: TextIO, total: int) -> Callable[[str, int], None]:
    done, last = 0, time.monotonic()

    def advance(name: str, size: int) -> None:
        nonlocal done, last
        done += size
        if time.monotonic() - last >= LOADING:
            last = time.monotonic()
            file.write(f"loading {name}: {done / 2**30:.1f} of {total / 2**30:.1f} GiB\n")
            file.flush()

    return advance


def _bar(file: TextIO, **settings: Any) -> Any:
    from tqdm import tqdm

    # Disable tqdm's monitor thread, which only redraws bars that are not updated.
    tqdm.monitor_interval = 0
    return tqdm(file=file, leave=False, dynamic_ncols=True, **settings)


def clock(seconds: float) -> str:
    """Formats seconds as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
