"""Measures the engine's own overhead, without the model: planning, building a step, and choosing tokens.

The first table covers the scheduler alone, with a thousand running and ten thousand waiting rows. The second covers a
whole step of 16 rows: `plan`, `build` (the step's arrays), `choose` (tokens from logits), their bookkeeping, and their
share of a model's step time, measured or given. All times are medians.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from inference.config import GenerationConfig
from inference.engine.request import Request
from inference.engine.sampler import choose
from inference.engine.scheduler import Scheduler
from inference.models.block_pool import BlockPool
from inference.models.step import SequenceStep, StepBatch

BLOCK_SIZE = 16
SETTINGS = {
    "greedy": {"do_sample": False},
    "top_k 50": {"do_sample": True, "top_k": 50, "seed": 0},
    "top_k 50, top_p 0.9": {"do_sample": True, "top_k": 50, "top_p": 0.9, "seed": 0},
    "top_p 0.9": {"do_sample": True, "top_k": 0, "top_p": 0.9, "seed": 0},
    "all tokens": {"do_sample": True, "top_k": 0, "seed": 0},
    "repetition penalty": {"do_sample": False, "repetition_penalty": 1.1},
}


def milliseconds(work: Callable[[], object], rounds: int) -> float:
    """Return the median time of a call."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)


def loaded(running: int, waiting: int, blocks: int | None, prefix_cache: bool) -> Scheduler:
    """Create a scheduler whose running rows all decode."""
    generator = random.Random(0)
    generation = GenerationConfig()
    most = 500 // BLOCK_SIZE + 2
    pool = BlockPool(1 + (blocks or running * most), BLOCK_SIZE)
    scheduler = Scheduler(pool, running + waiting if blocks else running, 1_000_000, prefix_cache)
    for row in range(running + waiting):
        prompt = [generator.randrange(30_000) for _ in range(generator.randint(1, 400))]
        scheduler.add(Request(str(row), prompt, generation, 100))
    step(scheduler)
    return scheduler


def step(scheduler: Scheduler) -> int:
    """Take a step like the engine, without a model; return its number of rows."""
    planned = scheduler.plan()
    for item in planned:
        at_end = item.reaches_end
        scheduler.advance(item)
        if at_end:
            item.request.output_ids.append(1)
    return len(planned)


def schedule_table(running: int, waiting: int, rounds: int) -> str:
    """Measure the scheduler alone."""
    lines = [
        f"| {running:,} rows running, {waiting:,} waiting | plan ms | plan and advance ms |",
        "| --- | --- | --- |",
    ]
    cases = {
        "no row can join": (None, False),
        "no row can join, prefix cache": (None, True),
        "a row could join, no block is free": (running * 15, True),
    }
    for name, (blocks, prefix_cache) in cases.items():
        scheduler = loaded(running, waiting, blocks, prefix_cache)
        plan = milliseconds(scheduler.plan, rounds)
        both = milliseconds(lambda scheduler=scheduler: step(scheduler), rounds)
        lines.append(f"| {name} ({len(scheduler.running):,} run) | {plan:.2f} | {both:.2f} |")
    return "\n".join(lines)


def sampling_table(rows: int, vocabulary: int, rounds: int) -> str:
    """Measure the parts of a step with a batch of `rows`."""
    generator = np.random.default_rng(0)
    # Like trained models: the probability of the n-th token falls roughly as n^-1.5.
    ranks = np.stack([generator.permutation(vocabulary) for _ in range(rows)])
    logits = (-1.5 * np.log1p(ranks) + generator.standard_normal(ranks.shape)).astype(np.float32)
    scheduler = loaded(rows, 0, None, True)
    plan = milliseconds(scheduler.plan, rounds)
    sequences = [SequenceStep([1], 100 + row, list(range(1, 20))) for row in range(rows)]
    build = milliseconds(lambda: StepBatch.build(sequences, BLOCK_SIZE), rounds)
    lines = [
        f"{rows} rows: plan {plan:.3f} ms, build {build:.3f} ms",
        "",
        f"| settings, vocabulary {vocabulary:,} | choose, ms for {rows} rows |",
        "| --- | --- |",
    ]
    for name, settings in SETTINGS.items():
        generation = GenerationConfig(**settings)
        requests = [Request(str(row), [1] * 100, generation, 100, seed=row, output_ids=[2] * 50) for row in range(rows)]
        taken = milliseconds(
            lambda requests=requests: [choose(*pair) for pair in zip(logits, requests, strict=True)], rounds
        )
        lines.append(f"| {name} | {taken:.2f} |")
    return "\n".join(lines)


@click.command(help=__doc__.split("\n")[0])
@click.option("--running", default=1000, show_default=True, help="Rows that run.")
@click.option("--waiting", default=10_000, show_default=True, help="Rows that wait.")
@click.option("--rows", default=16, show_default=True, help="Rows of the sampling table.")
@click.option("--rounds", default=30, show_default=True, help="Repetitions, of which medians are taken.")
def main(running: int, waiting: int, rows: int, rounds: int) -> None:
    click.echo(schedule_table(running, waiting, rounds))
    for vocabulary in (32_000, 151_936):
        click.echo("\n" + sampling_table(rows, vocabulary, rounds))


if __name__ == "__main__":
    main()
