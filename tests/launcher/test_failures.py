"""Ranks that fail, are killed or hang, and launchers that are told to end: ten seconds later nothing is left."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from launching import LAUNCHER, Launcher, quoted, wait_until

from inference.launcher.supervision import GRACE

# Rank 0 tells what it has when it is interrupted.
WORK = """
def interrupted(*_):
    print('1 row is written', file=sys.stderr)
    sys.exit(130)
signal.signal(signal.SIGINT, interrupted)
print('rank', rank, 'works', file=sys.stderr, flush=True)
Path(f'up{rank}').touch()
"""
WAIT = "while True: time.sleep(0.05)\n"


def all_up(launcher: Launcher, ranks: int = 2) -> None:
    wait_until(lambda: all(launcher.there(f"up{rank}") for rank in range(ranks)))


def test_a_rank_that_fails_ends_the_others(launcher: Launcher) -> None:
    command = launcher.script(
        f"{WORK}\nif rank == 1:\n    while not Path('go').exists(): time.sleep(0.01)\n"
        f"    sys.stderr.write('line\\n' * 20 + 'error: no more\\n'); sys.exit(5)\n{WAIT}"
    )
    process = launcher.start(command, 3)
    all_up(launcher, 3)
    (launcher.directory / "go").touch()
    code, out, error = launcher.ended(process, time.monotonic())
    assert (code, out) == (5, "")
    first, *rest = error.splitlines()
    told = "launcher: rank 1 ended with exit code 5; the last lines of output/msrun_log/worker_1.log:"
    assert (first, rest[0]) == ("rank 0 works", told)
    assert rest[1:] == [*["  line"] * 9, "  error: no more", "1 row is written"]


def test_the_worst_exit_code_counts(launcher: Launcher) -> None:
    # As by a message from one to the other.
    command = launcher.script(
        f"{WORK}\nwhile not all(Path(f'up{{i}}').exists() for i in range(3)): time.sleep(0.01)\n"
        f"if rank == 2: sys.exit(2)\nif rank == 1:\n    os.kill(os.getpid(), signal.SIGKILL)\n{WAIT}"
    )
    code, _, error = launcher.run(command, 3)
    assert code == 128 + signal.SIGKILL
    assert "rank 2 ended with exit code 2" in error or "rank 1 was killed by SIGKILL" in error


def test_rank_0_fails_and_reports_why_once(launcher: Launcher) -> None:
    command = launcher.script("if rank == 0: sys.exit('error: no such model')\ntime.sleep(1000)")
    assert launcher.run(command, 2) == (
        1,
        "",
        "error: no such model\nlauncher: rank 0 ended with exit code 1; its log is output/msrun_log/worker_0.log\n",
    )
    assert (launcher.logs / "worker_0.log").read_text() == "error: no such model\n"


@pytest.mark.parametrize("rank", [0, 1])
def test_sigkill(launcher: Launcher, rank: int) -> None:
    process = launcher.start(launcher.script(WORK + WAIT), 2)
    all_up(launcher)
    victim = launcher.find("worker.py", rank)
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    code, _, error = launcher.ended(process, time.monotonic())
    assert code == 137
    assert f"launcher: rank {rank} was killed by SIGKILL; the last lines of " in error
    assert f"\n  rank {rank} works\n" in error
    assert ("1 row is written" in error) == (rank == 1)


def test_sigkill_of_the_scheduler(launcher: Launcher) -> None:
    process = launcher.start(launcher.script(WORK + WAIT), 2)
    all_up(launcher)
    scheduler = wait_until(lambda: launcher.find("mindspore.communication"))
    os.kill(scheduler, signal.SIGKILL)
    code, _, error = launcher.ended(process, time.monotonic())
    assert code == 137 and "launcher: MindSpore's scheduler was killed by SIGKILL; " in error


def test_a_scheduler_that_ends_is_a_failure(launcher: Launcher) -> None:
    code, _, error = launcher.run(launcher.script(WAIT), 2, env={"FAKE_SCHEDULER_ERROR": "no such address"})
    assert code == 1
    assert error.startswith("launcher: MindSpore's scheduler ended with exit code 1; the last lines of ")
    assert "\n  no such address\n" in error


def test_a_command_that_cannot_be_run(launcher: Launcher) -> None:
    script = launcher.directory / "damaged"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    code, _, error = launcher.run("./damaged", 2)
    assert code == 126 and "error: ./damaged cannot be run: No such file or directory" in error


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=lambda n: str(int(n))
)
def test_a_signal_ends_the_launcher(launcher: Launcher, number: int, code: int) -> None:
    """As Ctrl-C does: rank 0 finishes what it has in hand, and says so."""
    process = launcher.start(launcher.script(WORK + WAIT), 2)
    all_up(launcher)
    process.send_signal(number)
    assert launcher.ended(process, time.monotonic()) == (code, "", "rank 0 works\n1 row is written\n")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=lambda n: str(int(n))
)
def test_a_signal_ends_it_during_the_check(launcher: Launcher, number: int, code: int) -> None:
    command = launcher.script("Path('checks').touch()\ntime.sleep(1000)", "run_inference.py")
    process = launcher.start(command, 2)
    wait_until(lambda: launcher.there("checks"))
    process.send_signal(number)
    assert launcher.ended(process, time.monotonic())[:2] == (code, "")
    assert not launcher.there("output")


def test_ctrl_z_and_fg_stop_and_continue_all(launcher: Launcher) -> None:
    """As the shell's job control does with one process; time that nobody had is no silence."""
    command = launcher.script(f"{WORK}\nwhile not Path('go').exists(): time.sleep(0.01)\nprint('answer of', rank)")
    child, terminal = pty.fork()
    if not child:
        os.chdir(launcher.directory)
        os.execvpe("bash", ["bash", "--norc", "-i"], launcher.environment)
    try:
        os.write(terminal, f"{quoted('bash', str(LAUNCHER), command, '2', '--timeout', '1')}\n".encode())
        all_up(launcher)
        processes = [launcher.find("inference.launcher"), *(launcher.find("worker.py", rank) for rank in range(2))]
        states = lambda: {state_of(pid) for pid in processes}  # noqa: E731
        os.write(terminal, b"\x1a")
        wait_until(lambda: states() == {"T"})
        time.sleep(1.3)
        assert states() == {"T"}
        os.write(terminal, b"fg\n")
        wait_until(lambda: "T" not in states())
        (launcher.directory / "go").touch()
        os.write(terminal, b'echo "ended with $?"; exit\n')
        said = read_all(terminal)
    finally:
        os.close(terminal)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert "Stopped" in said and "answer of 0" in said and "ended with 0" in said.splitlines()[-2:], said


def test_a_signal_ends_a_stopped_launcher(launcher: Launcher) -> None:
    """As a shell does when it ends: SIGHUP, and then SIGCONT."""
    process = launcher.start(launcher.script(WORK + WAIT), 2, preexec_fn=os.setpgrp)
    all_up(launcher)
    process.send_signal(signal.SIGTSTP)
    wait_until(lambda: state_of(process.pid) == state_of(launcher.find("worker.py", 1)) == "T")
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGCONT)
    assert launcher.ended(process, time.monotonic())[0] == 129


def state_of(pid: int | None) -> str:
    """The letter that `ps` shows."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def read_all(terminal: int) -> str:
    data = b""
    # Linux says EIO when nobody has the other end any more.
    with contextlib.suppress(OSError):
        while select.select([terminal], [], [], 60)[0] and (piece := os.read(terminal, 65536)):
            data += piece
    return data.decode().replace("\r\n", "\n")


def test_a_rank_that_ignores_signals(launcher: Launcher) -> None:
    process = launcher.start(launcher.script(WORK + "signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + WAIT), 2)
    all_up(launcher)
    process.send_signal(signal.SIGINT)
    assert launcher.ended(process, time.monotonic())[0] == 130


def test_a_second_interrupt_ends_the_run_at_once(launcher: Launcher) -> None:
    process = launcher.start(launcher.script(WORK + "signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + WAIT), 2)
    all_up(launcher)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert launcher.ended(process, started)[0] == 130
    assert time.monotonic() - started < GRACE


def test_interrupted_as_soon_as_a_rank_exists(launcher: Launcher) -> None:
    process = launcher.start(launcher.script(WAIT), 2)
    wait_until(lambda: launcher.find("python worker.py", 0))
    process.send_signal(signal.SIGINT)
    assert launcher.ended(process, time.monotonic())[0] == 130


@pytest.mark.parametrize("starting", [False, True])
def test_no_rank_outlives_a_launcher_that_is_killed(launcher: Launcher, starting: bool) -> None:
    process = launcher.start(launcher.script(WORK + WAIT), 2)
    wait_until(lambda: launcher.find("python worker.py", 0)) if starting else all_up(launcher)
    process.kill()
    process.wait()
    wait_until(lambda: not launcher.processes(), 10)


def test_processes_started_by_a_rank_also_end(launcher: Launcher) -> None:
    """Also in a session of its own, and when its parent has ended long ago."""
    command = launcher.script(
        "import subprocess\nsubprocess.Popen(['sleep', '1000'], start_new_session=True)\nos.system('sleep 1000 &')"
    )
    assert launcher.run(command, 2) == (0, "", "")


class TestHang:
    def test_silence(self, launcher: Launcher) -> None:
        process = launcher.start("--timeout", 3, launcher.script(WORK + WAIT), 2)
        all_up(launcher)
        code, _, error = launcher.ended(process, time.monotonic())
        assert code == 124
        # One may have been up before the other, and is past its time first.
        assert re.search(
            r"launcher: rank (0|1|0, 1) gave no sign of life for 3 s \(--timeout\); the last lines of output/msrun_",
            error,
        )
        assert error.endswith("1 row is written\n")

    PULSE = "from inference.parallel import heartbeat as pulse\n"

    def test_heartbeats(self, launcher: Launcher) -> None:
        """Steps of work, a wait for work, and lines in the log, however long; and a rank that says nothing more after a
        step, which alone is named."""
        command = launcher.script(
            f"{self.PULSE}until = time.monotonic() + 3.5\n"
            "def steps(): pulse.busy(); time.sleep(0.1)\n"
            "def waits(): pulse.idle(); time.sleep(1000)\n"
            "def writes(): print('here', file=sys.stderr, flush=True); time.sleep(0.1)\n"
            "def stops(): steps() if time.monotonic() < until else time.sleep(1000)\n"
            "while True: [steps, waits, writes, stops][rank]()\n"
        )
        code, _, error = launcher.run("--timeout", 3, command, 4)
        assert code == 124 and error.startswith("launcher: rank 3 gave no sign of life for 3 s")

    def test_a_stopped_process(self, launcher: Launcher) -> None:
        busy = "while True: pulse.busy(); time.sleep(0.01)"
        process = launcher.start("--timeout", 3, launcher.script(f"{self.PULSE}{WORK}{busy}"), 2)
        all_up(launcher)
        victim = launcher.find("worker.py", 1)
        assert victim is not None
        os.kill(victim, signal.SIGSTOP)
        code, _, error = launcher.ended(process, time.monotonic())
        assert code == 124 and "rank 1 gave no sign of life" in error


def test_kill_at_any_moment(launcher: Launcher) -> None:
    """The launcher's answer does not depend on when a rank is killed."""
    command = launcher.script(WORK + WAIT)
    kill: Callable[[int, int], None] = os.kill
    for delay in (0.0, 0.03, 0.1):
        process = launcher.start(command, 2)
        victim = wait_until(lambda: launcher.find("worker.py", 1))
        time.sleep(delay)
        kill(victim, signal.SIGKILL)
        code, _, error = launcher.ended(process, time.monotonic())
        assert code == 137 and "rank 1 was killed by SIGKILL" in error, (delay, error)
