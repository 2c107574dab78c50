"""Measures a model on one rank and on several, all on this machine: tokens per second and communication time.

    python scripts/bench_ranks.py                                          # llama-15m and qwen2-0.5b, 1 and 2 ranks
    python scripts/bench_ranks.py --models llama-15m --dtypes int4 --ranks 1,2,4 --rounds 5

The ranks divide the processors evenly: one rank has all of them, two have half each. More ranks cannot be faster on one
machine, so the table shows the cost of sharing a model: each sublayer ends in a sum over all ranks. Random weights, one
row, medians over the rounds.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# Also lets this script import the project without installing it.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import click

from benchmarking.shapes import SHAPES, make_checkpoint

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 600
COLUMNS = ("model", "weights", "ranks", "prefill, tok/s", "decode, tok/s", "share of communication", "through")


def measure(job: dict[str, Any], ranks: int) -> dict[str, Any]:
    """Return the leader's figures for one run."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    cluster = {"MS_WORKER_NUM": str(ranks), "MS_SCHED_HOST": "127.0.0.1", "MS_SCHED_PORT": str(port)}
    common = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "scripts")]), "GLOG_v": "3"}
    program = [sys.executable, "-m", "benchmarking.ranks", json.dumps(job)]
    if ranks == 1:
        done = subprocess.run(program, env=common, capture_output=True, text=True, timeout=PATIENCE, check=False)
        return _figures(done.stdout, done.stderr)
    scheduler = subprocess.Popen(
        [sys.executable, "-m", "inference.parallel.msrun_scheduler"], env={**common, **cluster, "MS_ROLE": "MS_SCHED"}
    )
    workers = [
        subprocess.Popen(
            program,
            env={**common, **cluster, "MS_ROLE": "MS_WORKER", "RANK_ID": str(rank), "DEVICE_ID": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        said = [worker.communicate(timeout=PATIENCE) for worker in workers]
    finally:
        for process in (scheduler, *workers):
            process.kill()
            process.wait()
    return _figures(said[0][0], "\n".join(err for _, err in said))


def _figures(out: str, err: str) -> dict[str, Any]:
    lines = [line for line in out.splitlines() if line.startswith("{")]
    if not lines:
        raise click.ClickException(f"a run gave no figures: {err.strip()[-500:]}")
    figures: dict[str, Any] = json.loads(lines[-1])
    return figures


def row(name: str, dtype: str, ranks: int, runs: list[dict[str, Any]]) -> list[str]:
    """Return a line of the table."""
    middle = {key: statistics.median(run[key] for run in runs) for key in runs[0] if key != "transport"}
    shown = [f"{middle['prefill_rate']:,.0f}", f"{middle['decode_rate']:,.1f}"]
    share = f"{middle['communication']:.0%}" if ranks > 1 else ""
    return [name, dtype, str(ranks), *shown, share, runs[0]["transport"]]


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--models", default="llama-15m,qwen2-0.5b", help=f"Of {', '.join(SHAPES)}.", show_default=True)
@click.option("--dtypes", default="float32,int8", help="Weight formats.", show_default=True)
@click.option("--ranks", default="1,2", help="Numbers of ranks.", show_default=True)
@click.option("--prompt", default=128, help="Tokens of the prompt.", show_default=True)
@click.option("--new", default=64, help="New tokens.", show_default=True)
@click.option("--rounds", default=3, help="Runs of each.", show_default=True)
@click.option("--work", type=Path, default=Path(tempfile.gettempdir()) / "inference-bench", help="For checkpoints.")
def main(models: str, dtypes: str, ranks: str, prompt: int, new: int, rounds: int, work: Path) -> None:
    cells = [
        (name, dtype, int(count))
        for name in models.split(",")
        for dtype in dtypes.split(",")
        for count in ranks.split(",")
    ]
    for name, _, _ in cells:
        if name not in SHAPES:
            raise click.BadParameter(f"'{name}' is none of {', '.join(SHAPES)}", param_hint="--models")
    runs: dict[tuple[str, str, int], list[dict[str, Any]]] = {cell: [] for cell in cells}
    for number in range(rounds):
        for cell in cells:
            name, dtype, count = cell
            click.echo(f"round {number + 1} of {rounds}: {name} {dtype}, {count} ranks", err=True)
            directory = make_checkpoint(work / "models" / name, SHAPES[name])
            runs[cell].append(measure({"model": str(directory), "dtype": dtype, "prompt": prompt, "new": new}, count))
    click.echo(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for cell, found in runs.items():
        click.echo(f"| {' | '.join(row(*cell, found))} |")


if __name__ == "__main__":
    main()
