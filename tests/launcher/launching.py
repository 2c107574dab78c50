"""Runs scripts/launcher.sh as a user does, with a scheduler that costs nothing, and sees what it leaves behind."""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FAKES = Path(__file__).parent / "fakes"
LAUNCHER = ROOT / "scripts" / "launcher.sh"
MARK = "LAUNCHER_TEST"
# The most that a launcher may take to end everything, seconds.
LIMIT = 10


def wait_until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """What `condition` gives as soon as it gives something true."""
    until = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)
    return value


class Launcher:
    """Starts in one directory. All processes that a test starts carry its mark."""

    def __init__(self, directory: Path, fake: bool = True):
        self.directory = directory
        self.mark = secrets.token_hex(8)
        # Without the project on the path: the launcher finds it by itself.
        path = [str(FAKES)] if fake else []
        self.environment = {
            **os.environ,
            MARK: self.mark,
            "PYTHONPATH": os.pathsep.join(path),
            "PYTHON": sys.executable,
        }
        self.logs = directory / "output" / "msrun_log"

    def script(self, code: str, name: str = "worker.py") -> str:
        """The command that runs a script in each rank; `rank` is there."""
        head = (
            "import json, os, signal, sys, time\nfrom pathlib import Path\nrank = int(os.environ.get('RANK_ID', -1))\n"
        )
        (self.directory / name).write_text(head + code)
        return f"python {name}"

    def start(self, *arguments: object, **options: Any) -> subprocess.Popen[bytes]:
        """A launcher that goes on beside the test."""
        environment = {**self.environment, **options.pop("env", {})}
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        words = ["bash", str(LAUNCHER), *map(str, arguments)]
        return subprocess.Popen(words, cwd=self.directory, env=environment, **options)

    def run(self, *arguments: object, **options: Any) -> tuple[int, str, str]:
        """Exit code, standard output and standard error of a launcher that leaves nothing behind."""
        given = options.pop("input", None)
        if given is not None:
            options["stdin"] = subprocess.PIPE
        process = self.start(*arguments, **options)
        out, error = process.communicate(given, timeout=120)
        assert self.processes() == {}
        return process.returncode, out.decode(), error.decode()

    def processes(self) -> dict[int, str]:
        """Marked processes that run, with their command lines."""
        found = {}
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and f"{MARK}={self.mark}".encode() in (entry / "environ").read_bytes():
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def find(self, part: str, rank: int | None = None) -> int | None:
        """The process of a command line, and of a rank."""
        for pid, line in self.processes().items():
            with contextlib.suppress(OSError):
                variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                if part in line and (rank is None or f"RANK_ID={rank}".encode() in variables):
                    return pid
        return None

    def there(self, name: str) -> bool:
        return (self.directory / name).exists()

    def ended(self, process: subprocess.Popen[bytes], since: float) -> tuple[int, str, str]:
        """Waits for a launcher, which has ten seconds and leaves nothing behind."""
        try:
            out, error = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the launcher goes on: {self.processes()}")
        assert time.monotonic() - since < LIMIT
        assert self.processes() == {}
        return process.returncode, out.decode(), error.decode()


def quoted(*words: str) -> str:
    """A command as the one string that the launcher takes."""
    return shlex.join(words)
