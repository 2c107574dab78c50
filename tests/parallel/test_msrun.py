"""run_inference.py under msrun itself: answers, sampling, evaluation, checkpoints by rank, and ranks that die."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from ranks import free_port, start

ROOT = Path(__file__).parents[2]
PROGRAM, DEMO = str(ROOT / "run_inference.py"), str(ROOT / "configs/demo/predict_demo.yaml")
PROMPTS = ["Once upon a time", "12 + 7 =", "Translate to German: the big house"]
SAMPLED = ["--do_sample", "True", "--top_k", "5", "--temperature", "1.3", "--seed", "11", "--max_new_tokens", "30"]
PATIENCE = 300
ENDLESS = ["--predict_data", "prompts.txt", "--max_new_tokens", "200", "--ignore_eos", "True"]
STAGES = ["waiting for the others", "loading its weights", "compiling", "ready"]


@dataclass
class Ran:
    """What each rank left."""

    code: int
    out: list[str]


def environment() -> dict[str, str]:
    # msrun takes `python` from the PATH.
    given = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    return {**given, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def msrun(folder: Path, ranks: int, *arguments: str) -> list[str]:
    start = [f"--worker_num={ranks}", f"--local_worker_num={ranks}", f"--master_port={free_port()}"]
    logs = [f"--log_dir={folder / 'logs'}", "--join=True"]
    entry = [sys.executable, "-c", "from mindspore.parallel.cluster.run import main; main()"]
    return [*entry, *start, *logs, *arguments]


def command(folder: Path, ranks: int, *arguments: str) -> list[str]:
    return msrun(folder, ranks, PROGRAM, "--config", DEMO, "--use_parallel", "True", *arguments)


def run(folder: Path, ranks: int, *arguments: str) -> Ran:
    done = subprocess.run(
        command(folder, ranks, *arguments),
        cwd=folder,
        env=environment(),
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    return Ran(done.returncode, [(folder / f"logs/worker_{rank}.log").read_text() for rank in range(ranks)])


def alone(folder: Path, *arguments: str) -> str:
    """Standard output of one process."""
    words = [sys.executable, PROGRAM, "--config", DEMO, *arguments]
    return subprocess.run(words, cwd=folder, env=environment(), capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_two_ranks_sample_the_same_tokens_as_one_process(tmp_path: Path) -> None:
    """Sampling is done once, by the leader: a follower that chose for itself would cache other tokens."""
    arguments = ["--predict_data", *PROMPTS, *SAMPLED, "--engine.weight_dtype", "float32"]
    expected = alone(tmp_path, *arguments)
    ran = run(tmp_path, 2, *arguments)
    assert ran.code == 0, ran.out
    assert expected in ran.out[0] and len(expected) > 100
    # A follower says how far it is, and no answer.
    first, *stages = ran.out[1].splitlines()
    assert re.fullmatch(r"rank 1 of 2: process \d+ on \S+, part 2 of 2 of the model", first)
    assert stages == [f"rank 1 of 2: {stage}" for stage in STAGES]


@pytest.mark.slow
def test_a_checkpoint_that_was_converted_for_two_ranks(tmp_path: Path) -> None:
    convert = ["--run_mode", "convert", "--model_parallel", "2", "--engine.weight_dtype", "float16"]
    made = tmp_path / alone(tmp_path, *convert, "--output_dir", "made").strip()
    names = sorted(path.relative_to(made).as_posix() for path in made.rglob("model.safetensors"))
    assert names == ["rank_0/model.safetensors", "rank_1/model.safetensors"]
    arguments = ["--predict_data", *PROMPTS, "--max_new_tokens", "20"]
    expected = alone(tmp_path, *arguments, "--engine.weight_dtype", "float16")
    ran = run(tmp_path, 2, "--load_checkpoint", str(made), "--auto_trans_ckpt", "False", *arguments)
    assert ran.code == 0, ran.out
    assert expected in ran.out[0] and ran.out[1].endswith("rank 1 of 2: ready\n")
    words = [sys.executable, PROGRAM, "--config", DEMO, "--load_checkpoint", str(made), "--predict_data", "x"]
    refused = subprocess.run(words, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "is split for 2 ranks" in refused.stderr


@pytest.mark.slow
def test_a_program_that_shares_its_model(tmp_path: Path) -> None:
    """It is run by the scheduler and by each rank; what follows the model is done once."""
    words = msrun(tmp_path, 2, str(ROOT / "examples" / "several_processes.py"))
    done = subprocess.run(words, cwd=tmp_path, env=environment(), capture_output=True, timeout=PATIENCE, check=False)
    logs = {path.stem: path.read_text() for path in (tmp_path / "logs").iterdir()}
    assert done.returncode == 0, logs
    assert logs["worker_0"] == "12 + 7 = 19\n" and logs["scheduler"] == ""
    assert [line.partition(": ")[2] for line in logs["worker_1"].splitlines()[1:]] == STAGES


@pytest.mark.slow
def test_msrun_ends_soon_after_a_follower_that_is_killed_in_a_step(tmp_path: Path) -> None:
    """The leader waits for it in shared memory, inside a graph."""
    (tmp_path / "prompts.txt").write_text("Once upon a time\n" * 5000)
    logs = [tmp_path / f"logs/worker_{rank}.log" for rank in range(2)]
    with subprocess.Popen(
        command(tmp_path, 2, *ENDLESS), cwd=tmp_path, env=environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as job:  # fmt: skip
        try:
            wait_for(lambda: text_of(logs[0]).count("Once") > 10)
            (follower,) = map(int, re.findall(r"rank 1 of 2: process (\d+) on ", text_of(logs[1])))
            os.kill(follower, signal.SIGKILL)
            assert job.wait(timeout=10) != 0
        finally:
            job.send_signal(signal.SIGINT)
    # It kills the leader, too, if that has not ended on its own.
    assert text_of(logs[0]).count("Once") < 5000


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "stage"), [(1, "loading its weights"), (1, "answers"), (0, "answers")])
def test_a_rank_that_is_killed_ends_the_other(tmp_path: Path, victim: int, stage: str) -> None:
    """By itself: nobody stands over them."""
    (tmp_path / "prompts.txt").write_text("Once upon a time\n" * 5000)
    answers, said = (tmp_path / "answers").open("w"), (tmp_path / "said").open("w")
    words = [PROGRAM, "--config", DEMO, "--use_parallel", "True", *ENDLESS]
    with answers, said:
        job = start(2, lambda rank, port: words, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=answers, stderr=said)
    try:
        if stage == "answers":
            wait_for(lambda: text_of(tmp_path / "answers").count("Once") > 10)
        else:
            wait_for(lambda: f"rank 1 of 2: {stage}" in text_of(tmp_path / "said"))
        killed, other = job[1 + victim], job[2 - victim]
        killed.kill()
        assert other.wait(timeout=5) == 1
        gone = f"error: rank {victim} is gone"
        (line,) = [line for line in text_of(tmp_path / "said").splitlines() if line.startswith("error: ")]
        assert line.startswith(gone) and "log" in line
        assert job[0].wait(timeout=5) == 0
    finally:
        for process in job:
            process.kill()
            process.wait()


def wait_for(is_true: Callable[[], bool], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < until
        time.sleep(0.02)


def text_of(path: Path) -> str:
    return path.read_text() if path.exists() else ""
