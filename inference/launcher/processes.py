"""Processes of a run on this machine: starts, signals, reaps and kills ranks and the scheduler.

Each gets the environment that MindSpore's msrun gives (mindspore/parallel/cluster/process_entity/_api.py of MindSpore
2.9), so a program cannot tell which one started it. Starting them here and not through msrun saves its import of
MindSpore (2-3 s) and makes every rank a child of the launcher from the first moment. Knows nothing about what the
command does.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from inference.errors import SIGNALLED, InputError
from inference.launcher.arguments import Settings
from inference.parallel.topology import (
    PATIENCE,
    RANK,
    ROLE,
    SCHEDULER,
    SCHEDULER_HOST,
    SCHEDULER_PORT,
    WORKER,
    WORKERS,
)

# prctl(2).
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
_LIBC = ctypes.CDLL(None)


def adopt_orphans() -> None:
    """Adopt descendants whose own parent ends, so that all of them can be killed."""
    _LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1)


def cluster_variables(settings: Settings) -> dict[str, str]:
    """The environment variables that msrun sets for all processes of a run."""
    return {
        WORKERS: str(settings.workers),
        SCHEDULER_HOST: _ip_address(settings.master_addr),
        SCHEDULER_PORT: str(settings.port),
        PATIENCE: str(int(settings.timeout) or -1),
        "RANK_SIZE": str(settings.workers),
    }


def rank_variables(settings: Settings, rank: int) -> dict[str, str]:
    """The environment variables that msrun sets for one rank."""
    device = rank - settings.ranks.start
    return {ROLE: WORKER, RANK: str(rank), "MS_NODE_ID": str(rank), "DEVICE_ID": str(device)}


def scheduler_variables() -> dict[str, str]:
    """The environment variables that msrun sets for MindSpore's scheduler."""
    return {ROLE: SCHEDULER, RANK: "0"}


def _ip_address(name: str) -> str:
    """The address of a host. MindSpore accepts no host names, and IPv6 addresses only without brackets.

    Raises:
        InputError: the name does not resolve.
    """
    bare = name.strip("[]")
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(bare))
    try:
        return str(socket.getaddrinfo(bare, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise InputError(f"the host {name} cannot be resolved: {error.strerror}", "give its IP address") from None


def start(
    command: Sequence[str],
    environment: Mapping[str, str],
    streams: tuple[int | None, int, int],
    keep: Iterable[int] = (),
) -> int:
    """Start a process in a separate session, which is killed when this process ends; return its id.

    Call it before this process has threads, because Python code runs between fork and exec.

    Args:
        streams: file descriptors of its standard streams; None for an empty standard input.
        keep: other file descriptors that it inherits.

    Raises:
        OSError: the command cannot be run.
    """
    stdin, stdout, stderr = streams
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL if stdin is None else stdin,
        stdout=stdout,
        stderr=stderr,
        pass_fds=tuple(keep),
        # Only the launcher reacts to Ctrl-C.
        start_new_session=True,
        preexec_fn=_die_with(os.getpid()),
    )
    # All children are reaped in one place; without this, `process` would also wait for its own.
    process.returncode = 0
    return process.pid


def _die_with(launcher: int) -> Callable[[], None]:
    """Prepare a new process before it runs the command: the system kills it when the launcher ends."""

    def prepare() -> None:
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != launcher:
            os._exit(1)
        # A shell ignores it for background jobs, and an ignored signal stays ignored in the new program.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return prepare


def signal_groups(groups: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to process groups; skip those that have ended."""
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)


def ended_children() -> Iterator[tuple[int, int]]:
    """Reap the children that have ended: the process id, and the exit code as a shell reports it."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        code = os.waitstatus_to_exitcode(status)
        yield pid, code if code >= 0 else SIGNALLED - code


def kill_children(seconds: float = 5.0) -> None:
    """Kill all children and their descendants, which this process adopts as their parents end."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        children = _children()
        for pid in children:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        list(ended_children())
        if not children:
            return
        time.sleep(0.01)


def how_it_ended(code: int) -> str:
    """An exit code in words: `ended with exit code 5`, `was killed by SIGKILL`."""
    if code > SIGNALLED:
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(code - SIGNALLED).name}"
    return f"ended with exit code {code}"


def _children() -> list[int]:
    """The child processes of this one (proc(5): the fourth field of stat)."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == os.getpid():
                    found.append(int(entry.name))
    return found
