"""The launcher as a program: check the command in one process, then start the ranks.

Knows run_inference.py's --check; `supervision` knows processes.
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
from inference.launcher.supervision import Supervisor, take_port
from inference.parallel.topology import WORLD_SIZE

# The command line of scripts/launcher.sh.
PROGRAM = "INFERENCE_LAUNCHER_PROGRAM"
LOGS = re.compile(r"(worker_(?P<rank>\d+)|scheduler|msrun|launcher)\.log")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the launcher and end the process."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    _open_missing_streams()
    _end_on_signals()
    # The command finds `python` in PATH, where it must be this one.
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
    """A signal ended the launcher during the check. Once there are ranks, `Supervisor` handles signals."""

    def __init__(self, number: int):
        super().__init__(number)
        self.exit_code = SIGNALLED + number


def _end_on_signals() -> None:
    """On a signal, first end the started processes, as Ctrl-C does. Signals that the shell ignores stay ignored."""

    def end(number: int, _: object) -> NoReturn:
        raise Ended(number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, end)


def _open_missing_streams() -> None:
    """Open closed standard streams (a shell's `<&-`), so that no other file gets their numbers."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def launch(settings: Settings, arguments: Sequence[str]) -> int:
    """Check, start the ranks and wait for them; return the exit code.

    Args:
        arguments: the launcher's own arguments, for the command that resumes the run.

    Raises:
        InferenceError: nothing was started.
    """
    code = check(settings)
    if code:
        return code
    os.environ[RELAUNCH] = relaunch_line(settings, arguments)
    with take_port(settings) as port, _logs(replace(settings, port=port)):
        settings = replace(settings, port=port)
        if settings.join:
            return Supervisor(settings).run()
        child = os.fork()
        if not child:
            os._exit(_in_background(settings))
        sys.stderr.write(f"launcher: process {child} runs in the background; logs in {settings.log_dir}\n")
        return 0


def check(settings: Settings) -> int:
    """Let run_inference.py check its config and flags once; other commands are not checked.

    Returns:
        The exit code of the check. If the check failed, its standard error is shown.
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
    """The shell command that starts another command in the same way; `{}` stands for that command."""
    program = shlex.split(os.environ.get(PROGRAM, "python -m inference.launcher"))
    quoted = ["{}" if tuple(_split(word)) == settings.command else shlex.quote(word) for word in arguments]
    return " ".join([shlex.join(program), *quoted])


def _split(word: str) -> list[str]:
    try:
        return shlex.split(word)
    except ValueError:
        return []


def _in_background(settings: Settings) -> int:
    """Run in a separate session, with launcher.log instead of a terminal."""
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
    """The directory of the logs, after removing those of an earlier run.

    Raises:
        InputError: another run on this machine uses it.
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
        # The file system has no locks, so this cannot be checked.
        return


def _fail(what: str, code: int) -> int:
    sys.stderr.write(f"error: {what}\n")
    return code
