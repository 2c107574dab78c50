"""`--run_mode chat` as a process: through a pipe, and at a terminal with Ctrl-C and Ctrl-D."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("prompt_toolkit")
ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, str(ROOT / "run_inference.py"), "--config", "demo", "--run_mode", "chat"]
# What a terminal is sent when a line is to be typed: bracketed paste begins.
PROMPT = "\x1b[?2004h"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}


def test_through_a_pipe() -> None:
    """Answers alone go to standard output; a turn that fails is exit code 3."""
    given = 'Tell me a story about a dog.\n/set max_new_tokens 4\nAnd a cat?\n"""one\ntwo"""\n/nonsense\n'
    command = [*COMMAND, "--max_new_tokens", "12"]
    done = subprocess.run(command, input=given, capture_output=True, text=True, env=ENVIRONMENT, timeout=120)
    assert done.returncode == 3, done.stderr
    assert len(done.stdout.splitlines()) == 3 and done.stdout.startswith("Once upon a time")
    assert "max_new_tokens 4" in done.stderr and "error: there is no /nonsense" in done.stderr


class Terminal:
    """A process on a terminal of its own."""

    def __init__(self, command: list[str]):
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=ENVIRONMENT,
            start_new_session=True,
            preexec_fn=_control,
        )
        os.close(slave)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def until(self, text: str, seconds: float = 60) -> str:
        """What is shown until `text` appears."""
        end = time.monotonic() + seconds
        start = len(self.shown)
        while text not in self.shown[start:]:
            assert time.monotonic() < end, self.shown
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    self.shown += os.read(self.master, 1 << 16).decode("utf-8", "replace")
                except OSError:
                    break
        return self.shown[start:]


def _control() -> None:
    """Makes standard input the terminal that controls the process, so that Ctrl-C becomes a signal."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_at_a_terminal() -> None:
    """Ctrl-C stops the answer and not the program, Ctrl-D ends it."""
    terminal = Terminal([*COMMAND, "--ignore_eos", "True", "--max_new_tokens", "450"])
    try:
        terminal.until(PROMPT)
        terminal.type("Tell me a story about a dog.\r")
        terminal.until("Once upon")
        terminal.type("\x03")
        terminal.until(PROMPT)
        terminal.type("/stats\r")
        shown = terminal.until(" out")
        assert "450 out" not in shown
        terminal.until(PROMPT)
        terminal.type("\x04")
        assert terminal.process.wait(30) == 0
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.master)
