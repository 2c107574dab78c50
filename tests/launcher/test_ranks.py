"""The launcher and run_inference.py together: copies of the demo model on a CPU."""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from launching import ROOT, Launcher, quoted, wait_until

from inference.kernels.build import library_path

PROGRAM = str(ROOT / "run_inference.py")
ROWS = 20
# What differs from run to run.
TIMING = ("ttft_seconds", "total_seconds", "cached_tokens")
JOB = (
    *("--config", "demo", "--predict_data", "rows.jsonl", "--predict_batch_size", "1", "--ignore_eos"),
    *("--max_length", "200", "--save_file", "out.jsonl", "--no_echo"),
)
PROMPT = ("--predict_data", "x")
COPIES = ("--use_parallel", "True", "--parallel_config.data_parallel")


@pytest.fixture(scope="module", autouse=True)
def kernels() -> None:
    library_path()


@pytest.fixture
def real(tmp_path: Path) -> Iterator[Launcher]:
    launcher = Launcher(tmp_path, fake=False)
    launcher.environment |= {"HF_HUB_OFFLINE": "1"}
    yield launcher
    for pid in launcher.processes():
        os.kill(pid, signal.SIGKILL)


def write_rows(folder: Path) -> None:
    """Rows that take a fifth of a second each."""
    lines = [json.dumps({"custom_id": f"r{i}", "prompt": f"Once upon a time {i}"}) for i in range(ROWS)]
    (folder / "rows.jsonl").write_text("\n".join(lines))


@pytest.fixture
def job(real: Launcher) -> Launcher:
    write_rows(real.directory)
    return real


@pytest.fixture(scope="module")
def of_one_process(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """The records of a run without a launcher."""
    folder = tmp_path_factory.mktemp("one")
    write_rows(folder)
    words = [sys.executable, PROGRAM, *JOB, "--predict_batch_size", "8"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run(words, cwd=folder, env=environment, check=True, capture_output=True)
    return texts(folder / "out.jsonl")


def command(*arguments: str) -> str:
    return quoted("python", PROGRAM, *arguments)


def count(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def texts(path: Path) -> dict[int, dict[str, Any]]:
    found = [json.loads(line) for line in path.read_bytes().splitlines()]
    rows = {row["row"]: {key: value for key, value in row.items() if key not in TIMING} for row in found}
    assert len(rows) == len(found), "a row is there twice"
    return rows


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((*PROMPT, *COPIES, "3"), "data_parallel 3 x model_parallel 1 needs 3 processes, 2 were started; "),
        ((*PROMPT, *COPIES, "2", "--run_mode", "evaluate"), "evaluate runs on one copy of the model; "),
        ((*COPIES, "2", "--run_mode", "serve"), "serve runs on one copy of the model; "),
        (("--run_mode", "convert"), "convert runs in one process; "),
        (
            (*PROMPT, "--use_parallel", "False"),
            "use_parallel is False, 2 processes were started; give --use_parallel True",
        ),
    ],
)
def test_impossible_settings_are_rejected_before_anything_starts(
    real: Launcher, flags: tuple[str, ...], message: str
) -> None:
    code, out, error = real.run(command("--config", "demo", *flags), 2)
    assert (code, out) == (2, "")
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not real.there("output")


def test_standard_input_is_not_read_by_the_check(real: Launcher) -> None:
    """Nor is a bad row more than a record of the run."""
    (real.directory / "rows.jsonl").write_text('{"prompt": "2 + 3 ="}\n{\n')
    job = (
        "--config",
        "demo",
        "--predict_data",
        "-",
        "--input_format",
        "jsonl",
        "--output_format",
        "json",
        *COPIES,
        "1",
    )
    code, out, error = real.run(command(*job), 1, input=(real.directory / "rows.jsonl").read_bytes())
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 3 and [row["text"] for row in sorted(rows, key=lambda row: row["row"])] == [" 5", None]
    assert "launcher" not in error


@pytest.mark.slow
def test_two_copies_of_two_ranks_on_two_nodes(real: Launcher) -> None:
    """Both nodes are this machine, each at an address of its own."""
    prompts = ["12 + 7 =", "Once upon a time", "2 + 3 ="]
    shared = (*COPIES, "2", "--parallel_config.model_parallel", "2")
    job = ("--config", "demo", "--predict_data", *prompts, "--echo", "--max_new_tokens", "20", *shared)
    machines = Loopback()
    nodes = [machines.start(real, node, command(*job), 4, 2) for node in range(2)]
    (out, error), (nothing, other) = (node.communicate(timeout=200) for node in nodes)
    assert [node.returncode for node in nodes] == [0, 0], (error, other)
    story = "Once upon a time, there was a little girl named Ruby. She lived near the beach. She loved to sing"
    assert out.decode() == f"12 + 7 = 19\n{story}\n2 + 3 = 5\n"
    assert b"rows by replica: 2, 1\n3 prompts: " in error
    assert (nothing, other) == (b"", b"") and real.processes() == {}
    for rank in (1, 2, 3):
        log = (real.directory / f"logs{rank // 2}" / f"worker_{rank}.log").read_text()
        part = f"part {rank % 2 + 1} of 2 of the model, copy {rank // 2 + 1} of 2"
        assert re.fullmatch(rf"rank {rank} of 4: process \d+ on \S+, {part}\n(rank {rank} of 4: .*\n)+", log)


@pytest.mark.slow
def test_an_interrupted_and_killed_job_resumes(job: Launcher, of_one_process: dict[int, Any]) -> None:
    out = job.directory / "out.jsonl"
    process = job.start(command(*JOB, *COPIES, "2"), 2)
    wait_until(lambda: count(out) >= 2)
    process.send_signal(signal.SIGINT)
    code, _, error = job.ended(process, time.monotonic())
    assert code == 130
    again = go_on(error, "error: interrupted")
    assert count(out) < ROWS

    process = subprocess.Popen(
        ["bash", "-c", again], cwd=job.directory, env=job.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    before = count(out)
    wait_until(lambda: count(out) >= before + 2)
    victim = job.find("run_inference.py", 1)
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    code, _, error = job.ended(process, time.monotonic())
    assert code == 137
    assert "launcher: rank 1 was killed by SIGKILL; " in error
    again = go_on(error, "error: (interrupted|rank 1 is gone.*?)")

    done = subprocess.run(["bash", "-c", again], cwd=job.directory, env=job.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"rows by replica: [1-9]\d*, [1-9]", done.stderr)
    assert texts(out) == of_one_process
    assert done.stdout == ""
    there = {path.name for path in job.directory.iterdir()}
    assert there == {"rows.jsonl", "out.jsonl", "out.jsonl.job", "output"}


def go_on(error: str, end: str) -> str:
    """The command that a run prints to resume it."""
    match = re.search(rf"^{end}; \d+ rows? in out.jsonl, resume with: (?P<again>bash .* 2)$", error, re.MULTILINE)
    assert match, error
    assert shlex.split(match["again"])[2].endswith("--resume")
    return match["again"]


@pytest.mark.slow
def test_sigkill_while_mindspore_is_loaded(job: Launcher) -> None:
    process = job.start(command(*JOB, *COPIES, "2"), 2)

    def loading() -> int | None:
        victim = job.find("run_inference.py", 0)
        maps = Path(f"/proc/{victim}/maps")
        return victim if victim and maps.exists() and "_c_expression" in maps.read_text() else None

    os.kill(wait_until(loading), signal.SIGKILL)
    code, out, error = job.ended(process, time.monotonic())
    assert (code, out) == (137, "") and "launcher: rank 0 was killed by SIGKILL; " in error
    assert {path.name for path in job.directory.iterdir()} == {"rows.jsonl", "output"}


PROGRAM_OF_ONES_OWN = """
from inference import AutoModel
model = AutoModel.from_pretrained("demo", use_parallel=True)
print(model.generate([5, 6, 7], max_new_tokens=3), flush=True)
raise ValueError("mine")
"""


@pytest.mark.slow
def test_a_users_program_that_fails(real: Launcher) -> None:
    """Its error is the run's; the rank that helped it has done nothing wrong."""
    real.environment["PYTHONPATH"] = str(ROOT)
    code, out, error = real.run(real.script(PROGRAM_OF_ONES_OWN), 2)
    assert code == 1 and out == "[[5, 6, 7, 499, 479, 499]]\n"
    said, failed = error.rstrip().splitlines()[-2:]
    assert said == "ValueError: mine"
    assert failed == "launcher: rank 0 ended with exit code 1; its log is output/msrun_log/worker_0.log"
    assert (real.logs / "worker_1.log").read_text().endswith("rank 1 of 2: ready\n")


class Loopback:
    """Two nodes on this machine, each at an address of its own."""

    def __init__(self) -> None:
        self.addresses = ["127.0.0.1", "127.0.0.2"]
        with socket.create_server((self.addresses[0], 0)) as probe:
            self.port = probe.getsockname()[1]

    def entering(self, node: int) -> list[str]:
        """The words before a command that runs on a node."""
        return ["env", f"INFERENCE_ADDRESS={self.addresses[node]}"]

    def start(self, launcher: Launcher, node: int, line: str, ranks: int, local: int) -> subprocess.Popen[bytes]:
        """MindFormers' nine arguments."""
        words = [line, ranks, local, self.addresses[0], self.port, node, f"logs{node}", "True", 120]
        return subprocess.Popen(
            [*self.entering(node), "bash", str(ROOT / "scripts" / "launcher.sh"), *map(str, words)],
            cwd=launcher.directory,
            env=launcher.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def close(self) -> None:
        """There is nothing to take down."""


class Network(Loopback):
    """Two network namespaces with a cable between them: two machines, as far as addresses go."""

    def __init__(self) -> None:
        name = secrets.token_hex(3)
        self.spaces = [f"launch{name}{i}" for i in range(2)]
        self.addresses, self.port = ["10.213.7.1", "10.213.7.2"], 8118
        ends = [f"v{name}{i}" for i in range(2)]
        for space in self.spaces:
            self.ip("netns", "add", space)
        self.ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for space, end, address in zip(self.spaces, ends, self.addresses, strict=True):
            self.ip("link", "set", end, "netns", space)
            self.ip("-n", space, "addr", "add", f"{address}/24", "dev", end)
            for device in (end, "lo"):
                self.ip("-n", space, "link", "set", device, "up")

    @staticmethod
    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    def entering(self, node: int) -> list[str]:
        return ["ip", "netns", "exec", self.spaces[node]]

    def close(self) -> None:
        for space in self.spaces:
            subprocess.run(["ip", "netns", "del", space], capture_output=True)


@pytest.fixture
def network() -> Iterator[Loopback]:
    network: Loopback
    try:
        network = Network()
    except (OSError, subprocess.CalledProcessError):
        # Network namespaces are not allowed here.
        network = Loopback()
    yield network
    network.close()


@pytest.mark.slow
def test_two_machines(job: Launcher, network: Loopback, of_one_process: dict[int, Any]) -> None:
    """A rank that is killed on one machine ends the run on both."""

    def start(node: int, *more: str) -> subprocess.Popen[bytes]:
        return network.start(job, node, command(*JOB, *COPIES, "2", *more), 2, 1)

    out = job.directory / "out.jsonl"
    nodes = [start(node) for node in range(2)]
    wait_until(lambda: count(out) >= 2)
    victim = job.find("run_inference.py", 1)
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    since = time.monotonic()
    (_, errors), (_, other) = (node.communicate(timeout=60) for node in nodes)
    assert time.monotonic() - since < 10 and job.processes() == {}
    assert [node.returncode for node in nodes] == [1, 137], (errors, other)
    assert b"error: rank 1 is gone" in errors and b"rows in out.jsonl, resume with: " in errors
    assert b"launcher: rank 1 was killed by SIGKILL" in other

    nodes = [start(node, "--resume") for node in range(2)]
    (_, errors), (second, other) = (node.communicate(timeout=200) for node in nodes)
    assert [node.returncode for node in nodes] == [0, 0], (errors, other)
    assert (second, other) == (b"", b"")
    assert re.search(rb"rows by replica: [1-9]\d*, [1-9]", errors)
    assert texts(out) == of_one_process
    there = {path.name for path in (job.directory / "logs1").iterdir()}
    assert there == {"worker_1.log"}
    assert (job.directory / "logs0" / "scheduler.log").exists()
