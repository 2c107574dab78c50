"""Rate limiting, backoff, and the Retry-After header.

Knows clocks; knows nothing about HTTP except the format of Retry-After.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from datetime import timezone
from email.utils import parsedate_to_datetime

# Size of a burst after a pause, in seconds of the rate.
BURST = 1.0


class RateLimit:
    """Limits the rate of requests: evenly spaced, except for a burst of one second's worth after a pause.

    Args:
        per_second: None for no limit.
    """

    def __init__(
        self,
        per_second: float | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self._per_second, self._clock, self._sleep = per_second, clock, sleep
        self._lock = threading.Lock()
        # Time at which the next request is due without bursts (generic cell rate algorithm).
        self._due = -float("inf")
        self._not_before = -float("inf")

    def wait(self) -> None:
        """Wait until the next request may begin."""
        with self._lock:
            now = self._clock()
            begin = max(now, self._not_before)
            if self._per_second is not None:
                step = 1 / self._per_second
                begin = max(begin, self._due - max(BURST - step, 0.0))
                self._due = max(self._due, begin) + step
        if begin > now:
            self._sleep(begin - now)

    def hold(self, seconds: float) -> None:
        """Hold all requests for some time, because the endpoint asked for it."""
        with self._lock:
            self._not_before = max(self._not_before, self._clock() + seconds)


def backoff(attempt: int, first: float, longest: float, draw: Callable[[], float] = random.random) -> float:
    """Return the seconds to wait before a retry: exponential in `attempt` (from 0), with random jitter.

    The random factor between 1/2 and 1 keeps rows that failed together from being retried together.
    """
    return min(first * 2.0 ** min(attempt, 60), longest) * (0.5 + 0.5 * draw())


def retry_after(value: str | None, now: Callable[[], float] = time.time) -> float | None:
    """Parse a Retry-After header, a number or a date (RFC 9110, 10.2.3), as seconds; None for anything else."""
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdecimal():
        return float(text[:9])
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return max(moment.timestamp() - now(), 0.0)
