"""Compares this project with llama.cpp in turns of a second: both are loaded, and one works while the other waits.

    python scripts/bench_pairs.py --peer-python llamacpp=VENV/bin/python
    python scripts/bench_pairs.py --model llama-15m --pairs int4:q4_0 --turns 20
    python scripts/bench_pairs.py --model FILE.gguf --pairs auto:file,int8:file

If other machines share the memory, its bandwidth can double or halve within minutes, so consecutive processes are
measured under different conditions. Turns within seconds of each other are not affected. A ratio is the median over
the turns of ours / llama.cpp's, reported with its quartiles.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import click

from benchmarking import machine, programs
from benchmarking.shapes import SHAPES, make_checkpoint

WORKS: dict[str, dict[str, Any]] = {
    "decode": {"rows": 1, "prompt": 128, "new": 64},
    "prefill": {"rows": 1, "prompt": 512, "new": 1},
    "4 rows": {"rows": 4, "prompt": 32, "new": 32},
    "16 rows": {"rows": 16, "prompt": 32, "new": 32},
}


class Worker:
    """A process of `benchmarking.turns`."""

    def __init__(self, python: str, job: dict[str, Any]):
        environment = {**os.environ, "PYTHONPATH": str(programs.ROOT)}
        command = [python, "-m", "benchmarking.turns", json.dumps(job)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, cwd=programs.SCRIPTS, env=environment, text=True, **pipes)
        self._answer("ready")

    def rate(self, name: str, work: dict[str, Any]) -> float:
        """Return the tokens/s of a piece of work: of the prompt if no new tokens are requested."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps({**work, "name": name}) + "\n")
        self._process.stdin.flush()
        run = json.loads(self._answer("{"))
        return run["rate"] if work["new"] > 1 else work["prompt"] / run["first"]

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def _answer(self, beginning: str) -> str:
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith(beginning):
                return line
        raise click.ClickException(f"a program ended with exit code {self._process.wait()}")


def take_turns(ours: Worker, theirs: Worker, turns: int) -> dict[str, list[tuple[float, float]]]:
    """Return tokens/s of (ours, theirs) in every turn, by kind of work; the program that begins alternates."""
    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in WORKS}
    for turn in range(turns):
        for name, work in WORKS.items():
            rates = {}
            for worker in (ours, theirs) if turn % 2 == 0 else (theirs, ours):
                rates[worker] = worker.rate(f"{name} {turn}", work)
            pairs[name].append((rates[ours], rates[theirs]))
    return pairs


def table(ours: str, theirs: str, pairs: dict[str, list[tuple[float, float]]]) -> list[str]:
    """Return the rows of the table."""
    lines = []
    for name, rates in pairs.items():
        first, second = (statistics.median(column) for column in zip(*rates, strict=True))
        low, middle, high = statistics.quantiles([a / b for a, b in rates], n=4)
        cells = (ours, theirs, name, f"{first:.1f}", f"{second:.1f}", f"{middle:.2f}", f"{low:.2f} - {high:.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _jobs(python: str, directory: Path, work: Path, threads: int) -> Callable[[str], dict[str, Any]]:
    """Return a function that makes llama.cpp's file of a type and returns its job."""
    cases = {case.weights: case for case in programs.peer_cases("llamacpp", python, directory, work, threads)}

    def job(weights: str) -> dict[str, Any]:
        for name in ("f32", weights):
            programs.prepare(cases[name], lambda text: click.echo(text, err=True))
        return cases[weights].calls[0].job

    return job


def _jobs_on_file(file: Path, threads: int) -> Callable[[str], dict[str, Any]]:
    """Return a function that returns llama.cpp's job on a GGUF file."""
    return lambda _: {"file": str(file), "threads": threads}


@click.command(help=__doc__.split("\n")[0])
@click.option("--model", default="llama-1b", show_default=True, help=f"Of {', '.join(SHAPES)}, or a checkpoint.")
@click.option(
    "--pairs",
    default="float32:f32,bfloat16:f16,int8:q8_0,int4:q4_0",
    show_default=True,
    help="OURS:THEIRS; `file` for a GGUF file as it is.",
)
@click.option("--turns", type=click.IntRange(2), default=12, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=len(os.sched_getaffinity(0)), show_default=True)
@click.option(
    "--peer-python", default=f"llamacpp={sys.executable}", help="llamacpp=INTERPRETER; this one if not given."
)
@click.option("--work", type=Path, default=Path(tempfile.gettempdir()) / "inference-bench", show_default=True)
def main(model: str, pairs: str, turns: int, threads: int, peer_python: str, work: Path) -> None:
    work, python = work.absolute(), peer_python.partition("=")[2]
    if not programs.installed_peers(["llamacpp"], {"llamacpp": python}, lambda text: click.echo(text, err=True)):
        sys.exit(2)
    made = model in SHAPES
    directory = make_checkpoint(work / "models" / model, SHAPES[model]) if made else Path(model).resolve()
    jobs = _jobs_on_file(directory, threads) if directory.suffix == ".gguf" else _jobs(python, directory, work, threads)
    click.echo("| ours | llama.cpp | work | ours, tok/s | llama.cpp, tok/s | ratio | quartiles |")
    click.echo("|" + " --- |" * 7)
    for pair in pairs.split(","):
        dtype, _, theirs = pair.partition(":")
        job = {"program": "ours", "model": str(directory), "dtype": dtype, "threads": threads}
        workers = [Worker(sys.executable, job), Worker(python, {**jobs(theirs), "program": "llamacpp"})]
        try:
            for line in table(dtype, theirs, take_turns(*workers, turns)):
                click.echo(line)
        finally:
            for worker in workers:
                worker.close()
    click.echo(f"{machine.name()}; {threads} threads; medians of {turns} turns", err=True)


if __name__ == "__main__":
    main()
