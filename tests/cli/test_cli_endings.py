"""How a run ends early: Ctrl-C, a reader that goes away, a disk that is full. Nothing is left half-written."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

# Half a minute of work, so that no run ends before the test ends it.
STORIES = (
    *("--config", "demo", "--engine.kernels", "stock", "--predict_batch_size", "1", "--ignore_eos"),
    *("--max_length", "512", "--predict_data", *["Once upon a time"] * 20),
)


WORDS = {signal.SIGINT: b"interrupted", signal.SIGTERM: b"terminated", signal.SIGHUP: b"hung up"}


def interrupted(process: subprocess.Popen[bytes], by: signal.Signals = signal.SIGINT) -> bytes:
    """Standard output of a run that is interrupted now."""
    process.send_signal(by)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 128 + by
    assert [line for line in error.splitlines() if not line.startswith(b"KV cache: ")] == [b"error: " + WORDS[by]]
    return out


def test_interrupt_while_text_streams(cli):
    kept = cli.write("saved.txt", "precious\n")
    arguments = (*STORIES, "--stream", "--save_file", "saved.txt", "--overwrite")
    process = cli.start(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    first = process.stdout.read(20)
    # Streamed: the beginning is there although the end is not.
    assert process.poll() is None
    assert first.decode().startswith(", there ")
    interrupted(process)
    # No answer was complete.
    assert kept.read_text() == "precious\n"
    assert {path.name for path in cli.directory.iterdir()} == {"saved.txt"}


def test_a_run_that_fails_leaves_no_empty_file(cli):
    result = cli.demo("--predict_data", "2 + 3 =", "--save_file", "saved.txt", "--engine.kv_cache_memory", "1KiB")
    assert "kv_cache_memory" in result.error(code=2)


@pytest.mark.parametrize(
    ("library", "seconds", "by"),
    [
        ("_pydantic_core", 0, signal.SIGINT),
        ("_c_expression", 0, signal.SIGTERM),
        ("_c_expression", 0, signal.SIGINT),
        ("_c_dataengine", 1, signal.SIGINT),
    ],
)
def test_interrupt_while_starting(cli, library, seconds, by):
    """MindSpore's own handler would crash its import, and leave a dump of the graph where it was compiling."""
    process = cli.start(*STORIES, "--no-stream", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for(library, process)
    time.sleep(seconds)
    assert interrupted(process, by) == b""
    assert list(cli.directory.iterdir()) == []


def wait_for(library: str, process: subprocess.Popen[bytes]) -> None:
    """Waits until the process has loaded a library."""
    while library not in Path(f"/proc/{process.pid}/maps").read_text():
        assert process.poll() is None
        time.sleep(0.01)


def test_ignored_signals_stay_ignored(cli):
    """A shell starts background jobs so, and nohup; MindSpore's handler would not keep to it."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)}
    try:
        process = cli.start(*STORIES, "--stream", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for _ in range(3):
        assert process.stdout.read(5)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGHUP)
    interrupted(process, signal.SIGTERM)


def run_in_shell(cli, redirection: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    words = " ".join(f"'{word}'" for word in cli.words(arguments))
    command = f"set -o pipefail; {words} {redirection}"
    return subprocess.run(
        ["bash", "-c", command], cwd=cli.directory, env=cli.environment, capture_output=True, text=True
    )


def test_a_reader_that_closes_its_pipe(cli):
    done = run_in_shell(cli, "| head -c 5", *STORIES, "--stream")
    assert done.stdout == ", the"
    assert done.stderr == ""
    assert done.returncode == 1
    assert run_in_shell(cli, "| head -c 5", "--help").stderr == ""


def test_a_full_disk(cli):
    done = run_in_shell(cli, "", "--config", "demo", "--predict_data", "2 + 3 =", "--save_file", "/dev/full")
    assert done.returncode == 1
    assert done.stderr == "error: /dev/full cannot be written: No space left on device\n"
    done = run_in_shell(cli, ">/dev/full", "--version")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: the output: No space left on device")
    assert done.stderr.count("\n") == 1


def test_a_closed_standard_output(cli):
    arguments = ("--config", "demo", "--predict_data", "2 + 3 =", "--save_file", "saved.txt")
    done = run_in_shell(cli, ">&-", *arguments)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert (cli.directory / "saved.txt").read_text() == " 5\n"
