"""Shows notices to the user from code that knows nothing about terminals and is not passed a `say`."""

from __future__ import annotations

import sys
from functools import lru_cache


@lru_cache(maxsize=1024)
def notice(text: str) -> None:
    """Writes a line to stderr, once per process."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
