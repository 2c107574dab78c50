"""The ranks on this machine as processes: started through msrun, watched, and ended all together.

msrun starts `worker.py` for each rank and ends; Linux then makes the launcher their parent (it is a "child subreaper",
prctl(2)), which hands each its command and streams and learns its exit code. Nothing that any of them started is left
when `run` returns. Knows nothing about what the command does.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import secrets
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from inference.errors import EXIT_FAILURE, EXIT_ROWS_FAILED, SIGNALLED, InferenceError, InputError
from inference.launcher import worker
from inference.launcher.arguments import MASTER, Settings
from inference.launcher.logs import Echo, Tail, last_lines, size_of
from inference.parallel.heartbeat import Pulses
from inference.parallel.msrun_scheduler import MINDSPORE
from inference.parallel.rendezvous import serve
from inference.parallel.topology import MEETING

# The module that MindSpore's `msrun` is.
MSRUN = "mindspore.parallel.cluster.run"
PR_SET_CHILD_SUBREAPER = 36
# Seconds that rank 0 has to say its last words, and to finish the record in hand.
GRACE = 4.0
# Seconds after a failure in which others that end by themselves count too.
SETTLING = 0.3
# Seconds between looks at the signs of life.
LOOK = 0.5
# What timeout(1) returns.
EXIT_TIMEOUT = 124
LINES = 10
# MindSpore's own scheduler, for programs that are not this project's.
SCHEDULER = """
import os
os.environ.setdefault("GLOG_v", "3")
from mindspore.communication import init
init("mccl")
"""
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class Rank:
    """A rank on this machine; `code` as a shell has it, None while it runs."""

    number: int
    log: Path
    pid: int | None = None
    code: int | None = None
    sign: float = 0.0
    """When it last gave a sign of life, seconds of the monotonic clock."""
    log_size: int = 0

    @property
    def running(self) -> bool:
        return self.pid is not None and self.code is None


class Supervisor:
    """One run of the ranks on this machine.

    Args:
        settings: with a port.
        attached: rank 0 has this process' standard streams; otherwise its log has them, as those of the others.
    """

    def __init__(self, settings: Settings, attached: bool = True):
        self._settings, self._attached = settings, attached
        self._ranks = [Rank(number, settings.log(number)) for number in settings.ranks]
        self._pulses = Pulses(settings.workers)
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._waiting: list[tuple[socket.socket, int | None]] = []
        self._msrun: int | None = None
        self._scheduler: int | None = None
        self._scheduler_came = False
        self._echo: Echo | None = None
        self._tail: Tail | None = None
        self._code = 0
        # Once the run is to end before its end: until when ranks are waited for, and at least.
        self._deadline: float | None = None
        self._settled = 0.0
        # When it last went on after a stop.
        self._continued = 0.0
        # The ranks' processes, once msrun has ended.
        self._found: dict[int, int] | None = None
        self._failed = False
        self._over = False

    def run(self) -> int:
        """Starts all and waits for their end; the exit code: 0, or the worst of those that failed by themselves, 124
        for a rank that hangs, and 128 + number for a signal.

        Raises:
            InputError: the port is taken.
        """
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
        with contextlib.ExitStack() as stack:
            stack.callback(self._finish)
            stack.enter_context(self._signals())
            self._start()
            while not self._over:
                for key, _ in self._selector.select(LOOK):
                    key.data()
                self._look()
        return self._code

    def _start(self) -> None:
        settings = self._settings
        name = f"inference-launcher-{secrets.token_hex(8)}"
        self._listener.bind(f"\0{name}")
        self._listener.listen(settings.local_workers + 1)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        if settings.tail:
            self._tail = Tail((rank.number, rank.log) for rank in self._ranks)
        options = {
            "worker_num": settings.workers,
            "local_worker_num": settings.local_workers,
            "master_addr": settings.master_addr,
            "master_port": settings.port,
            "node_rank": settings.node_rank,
            "log_dir": settings.log_dir.absolute(),
            "join": False,
            "cluster_time_out": int(settings.timeout) or -1,
        }
        meeting = {} if settings.runs_inference else {MEETING: self._open_meeting()}
        words = [sys.executable, "-m", MSRUN, *(f"--{key}={value}" for key, value in options.items()), worker.__file__]
        self._started = time.monotonic()
        with (settings.log_dir / "msrun.log").open("wb") as log:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, worker.SOCKET: name, **meeting},
                # Ctrl-C is the launcher's to act on.
                start_new_session=True,
            )
        self._msrun = process.pid
        # All children are waited for in one place; without this, `process` would do it too.
        process.returncode = 0

    def _open_meeting(self) -> str:
        """Where the ranks of a program meet that has its model from this project: beside MindSpore's scheduler, which
        may not be asked at all. On several machines nobody knows a port but that one.
        """
        settings = self._settings
        if not settings.on_one_machine:
            return MINDSPORE
        port = check_port(replace(settings, master_addr=MASTER, port=None))

        def meet() -> None:
            with contextlib.suppress(InferenceError):
                serve((MASTER, port), settings.workers, math.inf)

        threading.Thread(target=meet, name="meeting", daemon=True).start()
        return f"{MASTER}:{port}"

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Signals wake the loop; what to do about them is done there."""
        read, write = socket.socketpair()
        for end in (read, write):
            end.setblocking(False)
        # What a shell has ignored stays so.
        numbers = [n for n in (*ENDING, signal.SIGTSTP) if signal.getsignal(n) is not signal.SIG_IGN]
        old = {n: signal.signal(n, lambda *_: None) for n in (*numbers, signal.SIGCHLD, signal.SIGWINCH)}
        old_fd = signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
        self._selector.register(read, selectors.EVENT_READ, lambda: self._signalled(read))
        try:
            yield
        finally:
            signal.set_wakeup_fd(old_fd)
            for number, handler in old.items():
                signal.signal(number, handler)
            read.close()
            write.close()

    def _signalled(self, wakeup: socket.socket) -> None:
        for number in wakeup.recv(256):
            if number == signal.SIGCHLD:
                self._reap()
            elif number == signal.SIGWINCH and self._echo:
                self._echo.resize()
            elif number == signal.SIGTSTP:
                self._pause()
            elif number in ENDING:
                self._interrupt(number)

    def _interrupt(self, number: int) -> None:
        """Ends the run on request; at once if it was asked for before."""
        if self._deadline is not None:
            self._deadline = 0.0
            return
        self._code = SIGNALLED + number
        self._stop()

    def _pause(self) -> None:
        """Stops the whole run, as Ctrl-Z does with a job of the shell's, until the launcher is continued."""
        groups = self._groups()
        began = time.monotonic()
        # Not SIGTSTP, which the kernel keeps from groups without a parent in their session, as these are.
        _signal_groups(groups, signal.SIGSTOP)
        handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        # Returns when the shell's `fg`, `bg` or SIGCONT continues this process.
        signal.raise_signal(signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, handler)
        _signal_groups(groups, signal.SIGCONT)
        if self._echo:
            self._echo.resize()
        # Nobody was silent in that time, or slow.
        self._continued = time.monotonic()
        self._started += self._continued - began
        self._settled += self._continued - began
        if self._deadline is not None:
            self._deadline += self._continued - began

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        _, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if user != os.getuid():
            connection.close()
            return
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._hello(connection))

    def _hello(self, connection: socket.socket) -> None:
        """A process says which rank it is: one short line. One that ends before that is seen as a child that ended."""
        self._selector.unregister(connection)
        try:
            rank = json.loads(connection.recv(256))["rank"]
        except (OSError, ValueError):
            connection.close()
            return
        self._waiting.append((connection, rank))
        self._greet()

    def _greet(self) -> None:
        """Gives the processes that wait their command, once msrun has ended and they are the launcher's children."""
        if self._msrun is not None or self._deadline is not None:
            return
        waiting, self._waiting = self._waiting, []
        for connection, number in waiting:
            pid, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if number is None:
                self._scheduler, self._scheduler_came = pid, True
                fds, streams = [self._pulses.fd], dict[int, int]()
            elif (self._found or {}).get(number) != pid:
                # It has ended meanwhile.
                connection.close()
                continue
            else:
                rank = self._ranks[number - self._settings.ranks.start]
                rank.pid = pid
                rank.sign = time.monotonic()
                fds, streams = self._streams(rank)
            order = {
                "launcher": os.getpid(),
                "command": self._settings.command if number is not None else self._scheduler_words(),
                "streams": streams,
                "pulse": len(fds) - 1,
            }
            with connection:
                data = json.dumps(order).encode() + b"\n"
                # Its end shows as the process' own.
                with contextlib.suppress(OSError):
                    sent = socket.send_fds(connection, [data], fds)
                    connection.sendall(data[sent:])
            if number == 0 and self._echo:
                self._echo.start()

    def _scheduler_words(self) -> list[str]:
        """What the process runs that the ranks find one another through. It needs nothing of the command."""
        if self._settings.node_rank:
            # msrun starts one wherever the address is this machine's: also for a second node of the same machine.
            return ["-c", ""]
        return ["-m", "inference.parallel.msrun_scheduler"] if self._settings.runs_inference else ["-c", SCHEDULER]

    def _streams(self, rank: Rank) -> tuple[list[int], dict[int, int]]:
        """File descriptors for a rank, and which standard stream each of them is to be."""
        if rank.number != 0 or not self._attached:
            return [self._pulses.fd], {}
        self._echo = Echo(rank.log, shown=self._tail is None)
        return [0, 1, self._echo.fd, self._pulses.fd], {0: 0, 1: 1, 2: 2}

    def _reap(self) -> None:
        """Learns which children have ended. The ranks are children only once msrun has ended: that comes first."""
        logs = self._settings.log_dir
        ended = sorted(_ended_children(), key=lambda child: child[0] != self._msrun)
        if ended and ended[0][0] == self._msrun:
            self._found, self._settled = _rank_processes(), time.monotonic() + SETTLING
        for pid, code in ended:
            rank = next((rank for rank in self._ranks if rank.pid == pid), None)
            if pid == self._msrun:
                self._msrun = None
                self._fail("msrun", code, logs / "msrun.log")
                self._greet()
            elif pid == self._scheduler:
                self._scheduler = None
                self._fail("MindSpore's scheduler", code, logs / "scheduler.log")
            elif rank is not None:
                rank.code = code
                self._fail(f"rank {rank.number}", code, rank.log, is_root=rank.number == 0)
            elif missing := self._missing(pid):
                # It ended before it had said who it is.
                self._fail(" or ".join(f"rank {rank.number}" for rank in missing), code, missing[0].log)
            elif not self._scheduler_came and not self._settings.node_rank:
                self._fail("MindSpore's scheduler", code, logs / "scheduler.log")
        if self._deadline is not None:
            return
        if all(rank.code is not None for rank in self._ranks):
            self._over = True
        elif self._has_root and self._ranks[0].code == 0 and self._settings.runs_inference:
            # All is written. The others end, or still wait for work that never came.
            self._deadline = time.monotonic() + GRACE

    def _look(self) -> None:
        """What time alone brings: signs of life that are missing, and the end of all patience."""
        now, limit = time.monotonic(), self._settings.timeout
        if self._deadline is not None:
            waited_for = self._asked() if self._code else [rank for rank in self._ranks if rank.running]
            self._over = now >= self._deadline or (not waited_for and now >= self._settled)
        elif self._found is not None and now >= self._settled and (missing := self._missing(None)):
            # msrun has waited for them when itself ended, and nobody knows their exit codes.
            self._fail(" or ".join(f"rank {rank.number}" for rank in missing), EXIT_FAILURE, missing[0].log)
        elif limit and any(rank.pid is None for rank in self._ranks):
            if now - self._started > limit:
                self._hang("the ranks have not started", self._settings.log_dir / "msrun.log")
        elif limit:
            silent = [rank for rank in self._ranks if rank.running and now - self._sign_of(rank, now) > limit]
            if silent:
                who = ", ".join(str(rank.number) for rank in silent)
                self._hang(f"rank {who} gave no sign of life", silent[0].log)

    def _missing(self, pid: int | None) -> list[Rank]:
        """The ranks that a process may have been which did not say who it is; those without one, for None."""
        found = self._found or {}
        return [rank for rank in self._ranks if rank.pid is None and found.get(rank.number) == pid] or [
            rank for rank in self._ranks if rank.pid is None and pid is not None and rank.number not in found
        ]

    def _sign_of(self, rank: Rank, now: float) -> float:
        """When a rank last showed that it goes on: by a step, by waiting for work, or by a line in its log."""
        pulse, size = self._pulses.silent_since(rank.number), size_of(rank.log)
        if size != rank.log_size or pulse is None:
            rank.log_size, rank.sign = size, now
        return max(rank.sign, pulse or 0.0, self._continued)

    def _fail(self, who: str, code: int, log: Path, is_root: bool = False) -> None:
        """If a process ended with an error, so does the run. What it was asked to do is no failure."""
        if not code or (self._deadline is not None and (is_root or not self._failed)):
            return
        self._code = max(self._code, code)
        if self._deadline is not None:
            return
        self._failed = True
        # What rank 0 says is on standard error already; and rows without an answer are no failure of a process.
        seen = is_root and self._attached
        if not (seen and code == EXIT_ROWS_FAILED):
            say(f"{who} {_how_it_ended(code)}", log, [] if seen and code < SIGNALLED else None)
        self._stop()
        self._settled = time.monotonic() + SETTLING

    def _hang(self, what: str, log: Path) -> None:
        self._code = EXIT_TIMEOUT
        say(f"{what} for {self._settings.timeout:g} s (--timeout)", log)
        self._stop()

    def _stop(self) -> None:
        """Interrupts rank 0, which has the answers; all others are killed after it, or when its grace is over."""
        self._deadline = time.monotonic() + GRACE
        for rank in self._asked():
            assert rank.pid is not None
            with contextlib.suppress(ProcessLookupError):
                os.kill(rank.pid, signal.SIGINT)

    def _asked(self) -> list[Rank]:
        """The running ranks that are interrupted: rank 0, or all where it is on another machine."""
        return [rank for rank in (self._ranks[:1] if self._has_root else self._ranks) if rank.running]

    def _groups(self) -> list[int]:
        """The process groups that run, named as the processes that lead them."""
        others = [pid for pid in (self._msrun, self._scheduler) if pid is not None]
        return others + [rank.pid for rank in self._ranks if rank.pid is not None and rank.code is None]

    @property
    def _has_root(self) -> bool:
        return self._ranks[0].number == 0

    def _finish(self) -> None:
        """Leaves nothing behind."""
        for connection, _ in self._waiting:
            connection.close()
        _signal_groups(self._groups(), signal.SIGKILL)
        kill_children()
        if self._echo:
            self._echo.finish()
        if self._tail:
            self._tail.finish()
        self._listener.close()
        self._selector.close()


def check_port(settings: Settings) -> int:
    """The port that is asked for, or one that is free.

    Raises:
        InputError: another program has it.
    """
    if not settings.on_one_machine and settings.node_rank:
        assert settings.port is not None
        return settings.port
    with socket.socket(socket.AF_INET6 if ":" in settings.master_addr else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.master_addr.strip("[]"), settings.port or 0))
        except OSError as error:
            where = f"{settings.master_addr}:{settings.port or 'any port'}"
            raise InputError(f"{where} cannot be listened on: {error.strerror}", "give another port, or none") from None
        return int(probe.getsockname()[1])


def _signal_groups(groups: Iterable[int], number: signal.Signals) -> None:
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)


def kill_children(seconds: float = 5.0) -> None:
    """Kills all children, and theirs, which become this process' own as their parents end."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        children = _children()
        for pid in children:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        list(_ended_children())
        if not children:
            return
        time.sleep(0.01)


def say(what: str, log: Path, lines: list[str] | None = None) -> None:
    """One line on standard error, and the end of a log below it."""
    lines = last_lines(log, LINES) if lines is None else lines
    text = f"launcher: {what}; " + (f"the last lines of {log}:" if lines else f"its log is {log}")
    sys.stderr.write("".join(f"{line}\n" for line in [text, *(f"  {line}" for line in lines)]))
    sys.stderr.flush()


def _how_it_ended(code: int) -> str:
    if code <= SIGNALLED:
        return f"ended with exit code {code}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(code - SIGNALLED).name}"
    return f"ended with exit code {code}"


def _rank_processes() -> dict[int, int]:
    """Children that msrun started as ranks: rank and process."""
    found = {}
    for pid in _children():
        with contextlib.suppress(OSError, KeyError, ValueError):
            words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            variables = dict(word.split(b"=", 1) for word in words if b"=" in word)
            if variables[b"MS_ROLE"] == b"MS_WORKER":
                found[int(variables[b"RANK_ID"])] = pid
    return found


def _ended_children() -> Iterator[tuple[int, int]]:
    """Processes that have ended, and how, as a shell has it."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        code = os.waitstatus_to_exitcode(status)
        yield pid, code if code >= 0 else SIGNALLED - code


def _children() -> list[int]:
    """Processes whose parent is this one (proc(5): the fourth field of stat)."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == os.getpid():
                    found.append(int(entry.name))
    return found
