"""The launcher as a program: checks what can be checked in one process, then starts all.

Knows run_inference.py's --check; all about processes is in `supervision`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import click

from inference.errors import EXIT_FAILURE, EXIT_USAGE, SIGNALLED, InferenceError, InputError
from inference.launcher import RELAUNCH
from inference.launcher.arguments import Settings, build_command
from inference.launcher.supervision import Supervisor, check_port
from inference.parallel.topology import WORLD_SIZE

# What scripts/launcher.sh was called as.
PROGRAM = "INFERENCE_LAUNCHER_PROGRAM"
LOGS = re.compile(r"(worker_(?P<rank>\d+)|scheduler|msrun|launcher)\.log")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the launcher and ends the process."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    _open_missing_streams()
    _end_on_signals()
    # The command takes `python` from PATH: it is to be this one.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    try:
        code = build_command(lambda settings: launch(settings, given)).main(given, standalone_mode=False)
    except InferenceError as error:
        code = _fail(str(error), error.exit_code)
    except click.ClickException as error:
        code = _fail(f"{error.format_message().rstrip('.')}; the command is one string, in quotes", EXIT_USAGE)
    except OSError as error:
        code = _fail(f"{error.filename or 'the launcher'}: {error.strerror}", EXIT_FAILURE)
    except (KeyboardInterrupt, click.Abort):
        code = _fail("interrupted", SIGNALLED + signal.SIGINT)
    except Ended as ended:
        code = ended.exit_code
    sys.exit(code if isinstance(code, int) else 0)


class Ended(BaseException):
    """The launcher is told to end while it checks; once there are ranks, `Supervisor` has the signals."""

    def __init__(self, number: int):
        super().__init__(number)
        self.exit_code = SIGNALLED + number


def _end_on_signals() -> None:
    """Lets what has been started be ended first, as Ctrl-C does. What a shell has ignored stays so."""

    def end(number: int, _: object) -> NoReturn:
        raise Ended(number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, end)


def _open_missing_streams() -> None:
    """A shell's `<&-` leaves a standard stream closed: nothing else may get its number."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def launch(settings: Settings, arguments: Sequence[str]) -> int:
    """Checks, starts, and waits; the exit code.

    Args:
        arguments: what the settings were made of, for those who tell how to go on.

    Raises:
        InferenceError: nothing was started.
    """
    code = check(settings)
    if code:
        return code
    settings = replace(settings, port=check_port(settings))
    os.environ[RELAUNCH] = relaunch_line(settings, arguments)
    with _logs(settings):
        if settings.join:
            return Supervisor(settings).run()
        child = os.fork()
        if not child:
            os._exit(_in_background(settings))
        sys.stderr.write(f"launcher: process {child} goes on in the background; logs in {settings.log_dir}\n")
        return 0


def check(settings: Settings) -> int:
    """Has run_inference.py check its config and flags, once for all; another command is not known here.

    Returns:
        The exit code of the check, after what it said on standard error; 0 if there is nothing to say.
    """
    if not settings.runs_inference:
        return 0
    done = subprocess.run(
        [*settings.command, "--check"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, WORLD_SIZE: str(settings.workers)},
    )
    if done.returncode:
        sys.stderr.buffer.write(done.stderr)
        sys.stderr.flush()
    return done.returncode if done.returncode >= 0 else SIGNALLED - done.returncode


def relaunch_line(settings: Settings, arguments: Sequence[str]) -> str:
    """The shell's line that starts another command so, which stands for `{}`."""
    program = shlex.split(os.environ.get(PROGRAM, "python -m inference.launcher"))
    quoted = ["{}" if tuple(_split(word)) == settings.command else shlex.quote(word) for word in arguments]
    return " ".join([shlex.join(program), *quoted])


def _split(word: str) -> list[str]:
    try:
        return shlex.split(word)
    except ValueError:
        return []


def _in_background(settings: Settings) -> int:
    """The same, in a session of its own, with launcher.log instead of a terminal."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    log = os.open(settings.log_dir / "launcher.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for target, source in ((0, null), (1, null), (2, log)):
        os.dup2(source, target)
    code = EXIT_FAILURE
    try:
        code = Supervisor(settings, attached=False).run()
    finally:
        os.write(2, f"launcher: ended with exit code {code}\n".encode())
    return code


@contextlib.contextmanager
def _logs(settings: Settings) -> Iterator[None]:
    """A directory for the logs, without those of ranks that this run does not have.

    Raises:
        InputError: another run on this machine writes there.
    """
    directory = settings.log_dir
    directory.mkdir(parents=True, exist_ok=True)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if settings.on_one_machine:
            _lock(fd, directory)
        for path in directory.iterdir():
            match = LOGS.fullmatch(path.name)
            rank = match and match["rank"]
            if match and (
                int(rank) in settings.ranks or int(rank) >= settings.workers if rank else not settings.node_rank
            ):
                path.unlink()
        yield
    finally:
        os.close(fd)


def _lock(fd: int, directory: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"another run writes its logs to {directory}", "give another --log_dir") from None
    except OSError:
        # A file system without locks: nothing can be said.
        return


def _fail(what: str, code: int) -> int:
    sys.stderr.write(f"error: {what}\n")
    return code
