"""run_inference.py under msrun itself: answers, sampling, evaluation, checkpoints by rank, and ranks that die."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from ranks import free_port

ROOT = Path(__file__).parents[2]
PROGRAM, DEMO = str(ROOT / "run_inference.py"), str(ROOT / "configs/demo/predict_demo.yaml")
PROMPTS = ["Once upon a time", "12 + 7 =", "Translate to German: the big house"]
SAMPLED = ["--do_sample", "True", "--top_k", "5", "--temperature", "1.3", "--seed", "11", "--max_new_tokens", "30"]
PATIENCE = 300


@dataclass
class Ran:
    """What each rank left."""

    code: int
    out: list[str]


def environment() -> dict[str, str]:
    # msrun takes `python` from the PATH.
    given = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    return {**given, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def command(folder: Path, ranks: int, *arguments: str) -> list[str]:
    start = [f"--worker_num={ranks}", f"--local_worker_num={ranks}", f"--master_port={free_port()}"]
    logs = [f"--log_dir={folder / 'logs'}", "--join=True"]
    entry = [sys.executable, "-c", "from mindspore.parallel.cluster.run import main; main()"]
    return [*entry, *start, *logs, PROGRAM, "--config", DEMO, "--use_parallel", "True", *arguments]


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
def test_two_ranks_sample_what_one_process_samples(tmp_path: Path) -> None:
    """Sampling is done once, by the leader: a follower that chose for itself would cache other tokens."""
    arguments = ["--predict_data", *PROMPTS, *SAMPLED, "--engine.weight_dtype", "float32"]
    expected = alone(tmp_path, *arguments)
    ran = run(tmp_path, 2, *arguments)
    assert ran.code == 0, ran.out
    assert expected in ran.out[0] and len(expected) > 100
    assert ran.out[1] == ""


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
    assert expected in ran.out[0] and ran.out[1] == ""
    words = [sys.executable, PROGRAM, "--config", DEMO, "--load_checkpoint", str(made), "--predict_data", "x"]
    refused = subprocess.run(words, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "is split for 2 ranks" in refused.stderr
