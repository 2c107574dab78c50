"""One run of the ranks on this machine: starts, watches and ends all of them together.

When `run` returns, no process that a rank started is left. Knows nothing about what the command does.
"""

from __future__ import annotations

import contextlib
import math
import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from inference.errors import EXIT_ROWS_FAILED, SIGNALLED, InferenceError, InputError
from inference.launcher import processes
from inference.launcher.arguments import MASTER, Settings
from inference.launcher.logs import Echo, Tail, last_lines, size_of
from inference.parallel import heartbeat
from inference.parallel.msrun_scheduler import MINDSPORE
from inference.parallel.rendezvous import serve
from inference.parallel.topology import MEETING

# Seconds that rank 0 gets to report its last messages, and to finish the current record.
GRACE = 4.0
# Seconds after a failure in which the failures of other ranks also count.
SETTLING = 0.3
# Seconds between two checks of the heartbeats.
LOOK = 0.5
# Exit code of timeout(1).
EXIT_TIMEOUT = 124
# A shell's exit code for a command that cannot be run.
EXIT_CANNOT_RUN = 126
LINES = 10
# MindSpore's own scheduler, for programs of other projects.
MINDSPORE_SCHEDULER = """
import os
os.environ.setdefault("GLOG_v", "3")
from mindspore.communication import init
init("mccl")
"""
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class Rank:
    """A rank on this machine; `code` is its exit code as a shell reports it, None while it runs."""

    number: int
    log: Path
    pid: int
    code: int | None = None
    sign: float = 0.0
    """When it last showed that it makes progress, seconds of the monotonic clock."""
    log_size: int = 0

    @property
    def running(self) -> bool:
        return self.code is None


class Supervisor:
    """One run of the ranks on this machine.

    Args:
        settings: the settings; `port` must be set.
        attached: rank 0 has this process's standard streams; otherwise its output goes to its log, as for the other
            ranks.
    """

    def __init__(self, settings: Settings, attached: bool = True):
        self._settings, self._attached = settings, attached
        self._ranks: list[Rank] = []
        self._heartbeats = heartbeat.Pulses(settings.workers)
        self._selector = selectors.DefaultSelector()
        self._scheduler: int | None = None
        self._echo: Echo | None = None
        self._tail: Tail | None = None
        self._code = 0
        # If the run is ended early: the latest and the earliest time to stop waiting for ranks.
        self._deadline: float | None = None
        self._settled = 0.0
        # Time at which the run was last continued after a stop.
        self._continued = 0.0
        self._failed = False
        self._over = False

    def run(self) -> int:
        """Start all ranks and wait until they end.

        Returns:
            0, or the worst exit code of the ranks that failed on their own; 124 if a rank hangs, 126 if the command
            cannot be run, 128 + number for a signal.
        """
        processes.adopt_orphans()
        with contextlib.ExitStack() as stack:
            stack.callback(self._finish)
            stack.enter_context(self._signals())
            if not self._start():
                return EXIT_CANNOT_RUN
            while not self._over:
                for key, _ in self._selector.select(LOOK):
                    key.data()
                self._look()
        return self._code

    def _start(self) -> bool:
        """Start the scheduler and the ranks, then threads; return False if the command cannot be run."""
        settings = self._settings
        port = None if settings.runs_inference or not settings.on_one_machine else _free_port(settings)
        environment = {**os.environ, **processes.cluster_variables(settings)}
        if not settings.runs_inference:
            # MindSpore's own scheduler runs for it. Ranks that do not need it meet beside it; on several machines
            # only the scheduler's port is known.
            environment[MEETING] = MINDSPORE if port is None else f"{MASTER}:{port}"
        if not settings.node_rank:
            self._start_scheduler(environment)
        for number in settings.ranks:
            try:
                self._ranks.append(self._start_rank(number, environment))
            except OSError as error:
                sys.stderr.write(f"error: {settings.command[0]} cannot be run: {error.strerror}\n")
                return False
        if self._echo:
            self._echo.start()
        if settings.tail:
            self._tail = Tail((rank.number, rank.log) for rank in self._ranks)
        if port is not None:
            threading.Thread(target=self._meet, args=(port,), name="meeting", daemon=True).start()
        return True

    def _start_scheduler(self, environment: dict[str, str]) -> None:
        """Start the process through which the ranks find each other. It does not depend on the command."""
        words = ["-m", "inference.parallel.msrun_scheduler"]
        if not self._settings.runs_inference:
            words = ["-c", MINDSPORE_SCHEDULER]
        with (self._settings.log_dir / "scheduler.log").open("wb") as log:
            self._scheduler = processes.start(
                [sys.executable, *words],
                {**environment, **processes.scheduler_variables()},
                (None, log.fileno(), log.fileno()),
            )

    def _start_rank(self, number: int, environment: dict[str, str]) -> Rank:
        path = self._settings.log(number)
        with path.open("wb") as log:
            streams: tuple[int | None, int, int] = (None, log.fileno(), log.fileno())
            if number == 0 and self._attached:
                self._echo = Echo(path, shown=not self._settings.tail)
                streams = (0, 1, self._echo.fd)
            memory = self._heartbeats.fd
            pid = processes.start(
                self._settings.command,
                {
                    **environment,
                    **processes.rank_variables(self._settings, number),
                    heartbeat.VARIABLE: f"{memory}:{number}",
                },
                streams,
                keep=[memory],
            )
        return Rank(number, path, pid, sign=time.monotonic())

    def _meet(self, port: int) -> None:
        """Let ranks find each other if another program uses a model of this project."""
        with contextlib.suppress(InferenceError):
            serve((MASTER, port), self._settings.workers, math.inf)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Make signals wake the loop, which handles them."""
        read, write = socket.socketpair()
        for end in (read, write):
            end.setblocking(False)
        # A signal that the shell ignores stays ignored.
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
        """End the run on request; at once on a second request."""
        if self._deadline is not None:
            self._deadline = 0.0
            return
        self._code = SIGNALLED + number
        self._stop()

    def _pause(self) -> None:
        """Stop the whole run, as Ctrl-Z does with a shell job, until the launcher is continued."""
        groups = self._groups()
        began = time.monotonic()
        # Not SIGTSTP, which the system ignores for process groups without a parent in their session, such as these.
        processes.signal_groups(groups, signal.SIGSTOP)
        handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        # Returns when `fg`, `bg` or SIGCONT continues this process.
        signal.raise_signal(signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, handler)
        processes.signal_groups(groups, signal.SIGCONT)
        if self._echo:
            self._echo.resize()
        # Do not count the stopped time as silence of a rank.
        self._continued = time.monotonic()
        self._settled += self._continued - began
        if self._deadline is not None:
            self._deadline += self._continued - began

    def _reap(self) -> None:
        """Reap the processes that have ended, and end the run if necessary."""
        for pid, code in processes.ended_children():
            rank = next((rank for rank in self._ranks if rank.pid == pid), None)
            if pid == self._scheduler:
                self._scheduler = None
                self._fail("MindSpore's scheduler", code, self._settings.log_dir / "scheduler.log")
            elif rank is not None:
                rank.code = code
                self._fail(f"rank {rank.number}", code, rank.log, is_root=rank.number == 0)
        if self._deadline is not None:
            return
        if not any(rank.running for rank in self._ranks):
            self._over = True
        elif self._has_root and self._ranks[0].code == 0 and self._settings.runs_inference:
            # All output is written. The other ranks end, or are still waiting for work.
            self._deadline = time.monotonic() + GRACE

    def _look(self) -> None:
        """Check what depends on time alone: missing heartbeats, and the end of the grace period."""
        now, limit = time.monotonic(), self._settings.timeout
        if self._deadline is not None:
            waited_for = self._asked() if self._code else [rank for rank in self._ranks if rank.running]
            self._over = now >= self._deadline or (not waited_for and now >= self._settled)
        elif limit:
            silent = [rank for rank in self._ranks if rank.running and now - self._sign_of(rank, now) > limit]
            if silent:
                who = ", ".join(str(rank.number) for rank in silent)
                self._hang(f"rank {who} gave no sign of life", silent[0].log)

    def _sign_of(self, rank: Rank, now: float) -> float:
        """Time at which a rank last showed progress: a step, waiting for work, or a line in its log."""
        beat, size = self._heartbeats.silent_since(rank.number), size_of(rank.log)
        if size != rank.log_size or beat is None:
            rank.log_size, rank.sign = size, now
        return max(rank.sign, beat or 0.0, self._continued)

    def _fail(self, who: str, code: int, log: Path, is_root: bool = False) -> None:
        """End the run if a process ended with an error. An exit that was requested is not a failure."""
        if not code or (self._deadline is not None and (is_root or not self._failed)):
            return
        self._code = max(self._code, code)
        if self._deadline is not None:
            return
        self._failed = True
        # Rank 0's messages are already on standard error, and rows without an answer are not a failure of the process.
        seen = is_root and self._attached
        if not (seen and code == EXIT_ROWS_FAILED):
            say(f"{who} {processes.how_it_ended(code)}", log, [] if seen and code < SIGNALLED else None)
        self._stop()
        self._settled = time.monotonic() + SETTLING

    def _hang(self, what: str, log: Path) -> None:
        self._code = EXIT_TIMEOUT
        say(f"{what} for {self._settings.timeout:g} s (--timeout)", log)
        self._stop()

    def _stop(self) -> None:
        """Interrupt rank 0, which has the answers; the others are killed after it ends or its grace period is over."""
        self._deadline = time.monotonic() + GRACE
        for rank in self._asked():
            with contextlib.suppress(ProcessLookupError):
                os.kill(rank.pid, signal.SIGINT)

    def _asked(self) -> list[Rank]:
        """The running ranks to interrupt: rank 0, or all if rank 0 is on another machine."""
        return [rank for rank in (self._ranks[:1] if self._has_root else self._ranks) if rank.running]

    def _groups(self) -> list[int]:
        """The running process groups, identified by their leading processes."""
        scheduler = [self._scheduler] if self._scheduler is not None else []
        return scheduler + [rank.pid for rank in self._ranks if rank.running]

    @property
    def _has_root(self) -> bool:
        return self._settings.ranks.start == 0

    def _finish(self) -> None:
        """Kill and clean up everything that is left."""
        processes.signal_groups(self._groups(), signal.SIGKILL)
        processes.kill_children()
        if self._echo:
            self._echo.finish()
        if self._tail:
            self._tail.finish()
        self._selector.close()


def check_port(settings: Settings) -> int:
    """The requested port, or a free one.

    Raises:
        InputError: another program uses it.
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


@contextlib.contextmanager
def take_port(settings: Settings) -> Iterator[int]:
    """Chooses the port as `check_port` does, and reserves it against other launchers on this machine: the scheduler
    starts to listen on it only some seconds later.

    Raises:
        InputError: another program or another launcher uses it.
    """
    port = check_port(settings)
    if sys.platform != "linux" or (not settings.on_one_machine and settings.node_rank):
        yield port
        return
    with socket.socket(socket.AF_UNIX) as claim:
        while True:
            try:
                # In Linux's abstract name space (unix(7)), the name disappears with the last process that has the
                # socket.
                claim.bind(f"\0mindspore-inference launcher {port}")
                break
            except OSError:
                if settings.port is not None:
                    where = f"{settings.master_addr}:{port}"
                    raise InputError(f"another launcher has taken {where}", "give another port, or none") from None
                port = check_port(settings)
        yield port


def _free_port(settings: Settings) -> int:
    return check_port(replace(settings, master_addr=MASTER, port=None))


def say(what: str, log: Path, lines: list[str] | None = None) -> None:
    """Print a line on standard error, with the end of a log below it."""
    lines = last_lines(log, LINES) if lines is None else lines
    text = f"launcher: {what}; " + (f"the last lines of {log}:" if lines else f"its log is {log}")
    sys.stderr.write("".join(f"{line}\n" for line in [text, *(f"  {line}" for line in lines)]))
    sys.stderr.flush()
