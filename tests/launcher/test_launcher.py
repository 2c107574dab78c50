"""The launcher with real processes and a scheduler that costs nothing: streams, words, logs, exit codes."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import termios
import time

import pytest
from launching import LAUNCHER, Launcher, quoted, wait_until

PROMPTS = ["I love Beijing, because", "日本語 🙂", 'it\'s "$HOME" `date` $(date) \\', "", "*", "a\nb\t", "-- --x=' '"]


def test_rank_0_behaves_like_a_single_process(launcher: Launcher) -> None:
    command = launcher.script(
        "print(json.dumps([rank, sys.argv[1:], sys.stdin.read()], ensure_ascii=False), flush=True)\n"
        "print('figures of', rank, file=sys.stderr)"
    )
    code, out, error = launcher.run(quoted(*command.split(), *PROMPTS), 2, input="a prompt ü\n".encode())
    assert (code, error) == (0, "figures of 0\n")
    assert json.loads(out) == [0, PROMPTS, "a prompt ü\n"]
    # What the other says, and finds on its standard input, is its own.
    first, second = (launcher.logs / "worker_1.log").read_text().splitlines()
    assert json.loads(first) == [1, PROMPTS, ""] and second == "figures of 1"
    assert (launcher.logs / "worker_0.log").read_text() == "figures of 0\n"
    assert sorted(path.name for path in launcher.directory.iterdir()) == ["output", "worker.py"]


def test_one_worker_another_directory_and_logs_of_an_earlier_run(launcher: Launcher) -> None:
    command = launcher.script("print(rank, os.environ['MS_WORKER_NUM'])")
    logs = launcher.directory / "my logs"
    for old in ("worker_0.log", "worker_1.log", "worker_12.log", "worker_x.log"):
        logs.mkdir(exist_ok=True)
        (logs / old).write_text("old")
    assert launcher.run(command, 1, "--log_dir", logs) == (0, "0 1\n", "")
    assert {path.name for path in logs.iterdir()} == {"worker_0.log", "worker_x.log", "scheduler.log"}
    assert (logs / "worker_0.log").read_text() == ""


def test_tail_shows_all_ranks_by_line(launcher: Launcher) -> None:
    command = launcher.script(
        "print('answer', rank, flush=True)\nfor i in range(3): sys.stderr.write(f'{i} of '); time.sleep(0.2); "
        "print(rank, file=sys.stderr)\nsys.stderr.write('half')"
    )
    code, out, error = launcher.run("--tail", command, 2)
    assert (code, out) == (0, "answer 0\n")
    lines = sorted(error.splitlines())
    assert lines == ["[0] 0 of 0", "[0] 1 of 0", "[0] 2 of 0", "[0] half"] + [
        *("[1] 0 of 1", "[1] 1 of 1", "[1] 2 of 1", "[1] answer 1", "[1] half")
    ]
    assert (launcher.logs / "worker_0.log").read_text() == "0 of 0\n1 of 0\n2 of 0\nhalf"


def test_a_terminal_stays_a_terminal(launcher: Launcher) -> None:
    """Standard output is the very terminal; standard error one that looks like it."""
    command = launcher.script(
        "if rank: sys.exit()\n"
        "print([stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)], os.get_terminal_size(2).columns)\n"
        "print(input())\nsys.stderr.write('\\rbar\\x1b[K\\n')"
    )
    child, fd = pty.fork()
    if not child:
        os.chdir(launcher.directory)
        os.execvpe("bash", ["bash", str(LAUNCHER), command, "2"], launcher.environment)
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("4H", 40, 123, 0, 0))
    os.write(fd, b"typed\n")
    data = b""
    while select.select([fd], [], [], 60)[0]:
        try:
            data += os.read(fd, 65536)
        except OSError:
            break
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, data
    lines = data.decode().replace("\r\n", "\n")
    assert "[True, True, True] 123" in lines and lines.count("typed\n") == 2 and "\rbar\x1b[K\n" in lines
    os.close(fd)


def test_a_closed_pipe_ends_rank_0_like_a_single_process(launcher: Launcher) -> None:
    launcher.script("while rank == 0: print('x' * 1000)\ntime.sleep(0.5)")
    line = f"bash {LAUNCHER} 'python worker.py' 2 | head -c 10; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], cwd=launcher.directory, env=launcher.environment, capture_output=True)
    assert (done.returncode, done.stdout) == (1, b"x" * 10)
    assert b"BrokenPipeError" in done.stderr and b"rank 0 ended with exit code 1" in done.stderr


def test_closed_streams(launcher: Launcher) -> None:
    launcher.script(
        "print(os.fstat(0).st_rdev == os.stat('/dev/null').st_rdev, file=sys.stderr)\nprint('nobody reads this')"
    )
    line = f"bash {LAUNCHER} 'python worker.py' 2 <&- >&-"
    done = subprocess.run(["bash", "-c", line], cwd=launcher.directory, env=launcher.environment, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"True\n")


def test_the_background(launcher: Launcher) -> None:
    command = launcher.script("print('answer of', rank, flush=True)\nwhile not Path('go').exists(): time.sleep(0.01)")
    process = launcher.start(command, 2, 0, "logs", "False", 60)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 0
    assert re.fullmatch(rb"launcher: process \d+ runs in the background; logs in logs\n", error)
    wait_until(lambda: launcher.find("worker.py", 1) and launcher.find("worker.py", 0))
    (launcher.directory / "go").touch()
    log = launcher.directory / "logs" / "launcher.log"
    wait_until(lambda: log.exists() and log.read_text() == "launcher: ended with exit code 0\n")
    wait_until(lambda: not launcher.processes())
    for rank in (0, 1):
        assert (log.parent / f"worker_{rank}.log").read_text() == f"answer of {rank}\n"


def test_a_background_run_fails_and_is_ended(launcher: Launcher) -> None:
    command = launcher.script("print('tired', file=sys.stderr)\nsys.exit(7) if rank else time.sleep(1000)")
    assert launcher.start(command, 2, "--join", "False").wait(60) == 0
    log = launcher.logs / "launcher.log"
    wait_until(lambda: log.exists() and "ended with exit code 7\n" in log.read_text())
    assert "launcher: rank 1 ended with exit code 7; the last lines of output/msrun_log/worker_1.log:\n  tired\n" in (
        log.read_text()
    )
    _, error = launcher.start(launcher.script("time.sleep(1000)"), 2, "--join", "False").communicate(timeout=60)
    (process,) = map(int, re.findall(rb"process (\d+)", error))
    wait_until(lambda: launcher.find("worker.py", 1))
    os.kill(process, signal.SIGTERM)
    wait_until(lambda: log.read_text() == "launcher: ended with exit code 143\n")
    wait_until(lambda: not launcher.processes())


class TestCheck:
    """run_inference.py is asked before anything starts whether it would run."""

    CODE = (
        "if '--check' in sys.argv:\n"
        "    print('fine so far')\n"
        "    sys.stderr.write(f\"error: not for {os.environ['INFERENCE_WORLD_SIZE']}\\n\")\n"
        "    sys.exit(2 if '--bad' in sys.argv else 0)\n"
        "print('answer', 'INFERENCE_WORLD_SIZE' in os.environ, sys.argv[1:])"
    )

    def test_a_mistake_ends_the_run_before_it_starts(self, launcher: Launcher) -> None:
        command = launcher.script(self.CODE, "run_inference.py")
        assert launcher.run(f"{command} --bad", 3) == (2, "", "error: not for 3\n")
        assert not launcher.there("output")

    def test_otherwise_it_is_silent(self, launcher: Launcher) -> None:
        command = launcher.script(self.CODE, "run_inference.py")
        assert launcher.run(f"{command} -x", 2) == (0, "answer False ['-x']\n", "")


class TestRefused:
    def test_a_reserved_port(self, launcher: Launcher) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            code, out, error = launcher.run("python x.py", 2, port)
        assert (code, out) == (2, "")
        assert error == (
            f"error: 127.0.0.1:{port} cannot be listened on: Address already in use; give another port, or none\n"
        )

    def test_an_unknown_option(self, launcher: Launcher) -> None:
        code, _, error = launcher.run("python", "x.py", "--config", "demo")
        assert code == 2 and error == "error: No such option '--config'; the command is one string, in quotes\n"

    def test_two_runs_with_the_same_logs(self, launcher: Launcher) -> None:
        command = launcher.script("Path('up').touch()\nwhile not Path('go').exists(): time.sleep(0.01)")
        first = launcher.start(command, 1)
        wait_until(lambda: launcher.there("up"))
        second = launcher.start(command, 1)
        assert second.communicate(timeout=60)[1] == (
            b"error: another run writes its logs to output/msrun_log; give another --log_dir\n"
        )
        assert second.returncode == 2
        (launcher.directory / "go").touch()
        assert first.wait(60) == 0

    def test_no_python_with_mindspore(self, launcher: Launcher) -> None:
        tools = launcher.directory / "bin"
        tools.mkdir()
        for name in ("bash", "dirname"):
            (tools / name).symlink_to(subprocess.check_output(["which", name], text=True).strip())
        # In a tree of its own, beside which demo.sh has set up nothing.
        copy = launcher.directory / "scripts" / "launcher.sh"
        copy.parent.mkdir()
        shutil.copy(LAUNCHER, copy)
        done = subprocess.run(["bash", str(copy), "python"], env={"PATH": str(tools)}, capture_output=True)
        assert done.returncode == 1 and b"no Python with MindSpore was found; run bash scripts/demo.sh" in done.stderr


def test_the_resume_command_goes_through_the_launcher(launcher: Launcher) -> None:
    command = launcher.script(
        "from inference.cli.main import resume_command as how\nprint(how(['--predict_data', \"it's\", '--overwrite']))"
    )
    code, out, error = launcher.run("--timeout", 60, command, 2)
    assert (code, error) == (0, "")
    program, script, *options, again, workers = shlex.split(out)
    assert (program, script, options, workers) == ("bash", str(LAUNCHER), ["--timeout", "60"], "2")
    assert shlex.split(again) == ["python", "worker.py", "--predict_data", "it's", "--resume"]


def test_the_scheduler_and_its_port_go_with_the_ranks(launcher: Launcher) -> None:
    command = launcher.script(
        "print(os.environ['MS_SCHED_PORT'], flush=True)\nwhile not Path('go').exists(): time.sleep(0.01)"
    )
    process = launcher.start(command, 1)
    assert process.stdout is not None
    port = int(process.stdout.readline())

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_until(listens)
    (launcher.directory / "go").touch()
    started = time.monotonic()
    assert launcher.ended(process, started)[0] == 0
    assert not listens()


def test_help_and_the_forms_it_names(launcher: Launcher) -> None:
    code, out, error = launcher.run("--help")
    assert (code, error) == (0, "")
    assert "COMMAND N [PORT [LOG_DIR [JOIN [TIMEOUT]]]]" in out and "--local_workers" in out


@pytest.mark.parametrize("code", [0, 3])
def test_exit_codes_that_are_not_process_failures(launcher: Launcher, code: int) -> None:
    assert launcher.run(launcher.script(f"sys.exit({code} if rank == 0 else 0)"), 2) == (code, "", "")
