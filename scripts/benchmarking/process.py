"""Figures that a process reads about itself (Linux: proc(5))."""

from __future__ import annotations

import os
from pathlib import Path


def age() -> float:
    """Return the seconds since this process started."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return uptime - int(fields[19]) / os.sysconf("SC_CLK_TCK")


def peak_memory() -> int:
    """Return this process's peak memory in bytes, including mapped file pages.

    Uses VmHWM rather than getrusage, which also counts the parent's memory from before it started this program.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM")
