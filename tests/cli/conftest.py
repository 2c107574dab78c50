"""Runs the command line as a user does: a process of its own, in a directory of its own.

A run that is waited for is forked off a process that has Python and the first imports behind it; one that a test looks
at meanwhile, or that gets variables of its own, is started anew.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fork_server import PROGRAM, ForkServer

from inference.kernels.build import KernelBuildError, library_path

TIMEOUT = 200  # seconds; a run takes four on a free machine


@dataclass(frozen=True)
class Result:
    """What a run left behind."""

    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Standard output as JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def by_id(self) -> dict[str, dict[str, Any]]:
        """The rows by their custom_id."""
        return {row["custom_id"]: row for row in self.rows}

    def answered(self) -> Result:
        """Itself, after checking that all went well."""
        assert self.code == 0, self.err
        assert "error" not in self.err
        return self

    def error(self, code: int = 2) -> str:
        """The one line on stderr of a run that failed and printed nothing else."""
        assert self.code == code, (self.code, self.err)
        assert self.out == ""
        assert self.err.startswith("error: ")
        assert self.err.count("\n") == 1, self.err
        return self.err.removeprefix("error: ").rstrip("\n")


class CommandLine:
    """Runs of run_inference.py in one directory, each of which writes only what it was asked to write."""

    def __init__(self, directory: Path, home: Path, server: ForkServer):
        self.directory = directory
        self._server = server
        # No network, and no model of the machine's user.
        given = {key: value for key, value in os.environ.items() if key != "INFERENCE_MODEL_HOME"}
        self.environment = {**given, "HF_HUB_OFFLINE": "1", "HF_HOME": str(home)}
        self._usual = dict(self.environment)

    def write(self, name: str, content: str | bytes) -> Path:
        """Makes a file in the directory."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def start(self, *arguments: object, **options: Any) -> subprocess.Popen[bytes]:
        """A run that goes on beside the test."""
        return subprocess.Popen(
            self.words(arguments), cwd=self.directory, env=self.environment, stdin=subprocess.DEVNULL, **options
        )

    def words(self, arguments: tuple[object, ...]) -> list[str]:
        return [sys.executable, str(PROGRAM), *map(str, arguments)]

    def __call__(self, *arguments: object, stdin: str | bytes = b"", writes: tuple[str, ...] = ()) -> Result:
        """Runs to the end; `writes` are the files that may be there afterwards and were not before."""
        before = self._files()
        words, given = self.words(arguments), stdin if isinstance(stdin, bytes) else stdin.encode()
        if self.environment == self._usual:
            code, out, err = self._server.run(words[2:], self.directory, self.environment, given, TIMEOUT)
        else:
            done = subprocess.run(
                words, cwd=self.directory, env=self.environment, input=given, capture_output=True, timeout=TIMEOUT
            )
            code, out, err = done.returncode, done.stdout, done.stderr
        assert self._files() - before == set(writes)
        return Result(code, out.decode(), err.decode())

    def demo(self, *arguments: object, **options: Any) -> Result:
        """Runs the demo model."""
        return self("--config", "demo", *arguments, **options)

    def _files(self) -> set[str]:
        return {path.relative_to(self.directory).as_posix() for path in self.directory.rglob("*")}


@pytest.fixture(scope="session", autouse=True)
def kernels() -> None:
    """Builds the CPU kernels, so that no run has to say that it does."""
    with contextlib.suppress(KernelBuildError):
        library_path()


@pytest.fixture(scope="session")
def server() -> Iterator[ForkServer]:
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture
def cli(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, server: ForkServer) -> CommandLine:
    """The command line in an empty directory."""
    return CommandLine(tmp_path, tmp_path_factory.mktemp("home"), server)


@pytest.fixture(scope="module")
def shared_cli(tmp_path_factory: pytest.TempPathFactory, server: ForkServer) -> CommandLine:
    """The same, for runs of the model that several tests look at."""
    return CommandLine(tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("home"), server)
