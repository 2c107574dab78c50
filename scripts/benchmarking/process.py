"""What a process can say about itself (Linux: proc(5))."""

from __future__ import annotations

import os
from pathlib import Path


def age() -> float:
    """Seconds since this process started."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return uptime - int(fields[19]) / os.sysconf("SC_CLK_TCK")


def peak_memory() -> int:
    """The most memory that this process has had, mapped file pages included, bytes.

    VmHWM and not getrusage: the latter also counts what the parent had before it started this program.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM")
