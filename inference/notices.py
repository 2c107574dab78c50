"""Lines that a user should see, from code that knows no terminal and is not handed a `say`."""

from __future__ import annotations

import sys
from functools import lru_cache


@lru_cache(maxsize=1024)
def notice(text: str) -> None:
    """Writes a line to stderr, once a process."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
