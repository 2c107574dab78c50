"""Compares continuous batching with running rows one by one and with static batches, on one loaded model.

    python scripts/bench_batch.py
    python scripts/bench_batch.py --model llama-15m --rounds 5

Prompts of 16 to 256 tokens request 16 to 256 new tokens each and are all submitted at once. Each round runs every way
of batching; a ratio is the median over the rounds of its tokens/s divided by those of one by one.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import click

from benchmarking.ours import Ours
from benchmarking.shapes import SHAPES, make_checkpoint

Rows = list[tuple[list[int], int]]
SHORTEST = 16


def make_rows(count: int, longest: int, vocabulary: int) -> Rows:
    """Make prompts and their numbers of new tokens, both from `SHORTEST` to `longest`; the same in every run."""
    numbers = random.Random(0)
    lengths = [(numbers.randint(SHORTEST, longest), numbers.randint(SHORTEST, longest)) for _ in range(count)]
    return [([numbers.randrange(3, vocabulary) for _ in range(prompt)], new) for prompt, new in lengths]


def batches(program: Ours, rows: Rows, size: int) -> float:
    """Return the seconds of static batches: no row joins until all rows of a batch have finished."""
    return sum(program.many(rows[first : first + size], size)[0] for first in range(0, len(rows), size))


def continuous(program: Ours, rows: Rows, size: int) -> float:
    """Return the seconds of continuous batching: a row joins as soon as another has finished."""
    return program.many(rows, size)[0]


@contextmanager
def checkpoint(name: str) -> Iterator[str]:
    """Yield the given directory, or a temporary checkpoint created for a shape."""
    if name not in SHAPES:
        yield name
        return
    with tempfile.TemporaryDirectory() as directory:
        yield str(make_checkpoint(Path(directory), SHAPES[name]))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--model", default="qwen2-0.5b", show_default=True, help=f"{', '.join(SHAPES)}, or a checkpoint")
@click.option("--dtype", default="float32", show_default=True, help="engine.weight_dtype")
@click.option("--rows", "count", default=32, show_default=True, help="prompts")
@click.option("--longest", default=256, show_default=True, help="most tokens of a prompt, and of an answer")
@click.option("--at-once", default="8,32", show_default=True, help="most rows in a step, for continuous batching")
@click.option("--threads", default=2, show_default=True)
@click.option("--rounds", default=1, show_default=True)
def main(model: str, dtype: str, count: int, longest: int, at_once: str, threads: int, rounds: int) -> None:
    """Print a table."""
    sizes = [int(size) for size in at_once.split(",")]
    with checkpoint(model) as directory:
        positions = count * (2 * longest + 32)
        program = Ours(directory, dtype, "native", threads, positions, max(sizes))
        given = make_rows(count, longest, program.model.config.vocab_size)
        ways: dict[str, Callable[[], float]] = {
            "one by one": partial(batches, program, given, 1),
            "static batches of 8": partial(batches, program, given, 8),
            **{f"continuous, {size} at once": partial(continuous, program, given, size) for size in sizes},
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        tokens = sum(new for _, new in given)
        for turn in range(rounds):
            for name, seconds in list(ways.items())[:: -1 if turn % 2 else 1]:
                rates[name].append(tokens / seconds())
    click.echo(f"{model}, {dtype}: {count} rows, {tokens:,} new tokens, {threads} threads, {rounds} rounds\n")
    click.echo("| | tokens/s | x one by one | x static |\n| --- | --- | --- | --- |")
    for name in ways:
        ratios = [
            statistics.median(mine / theirs for mine, theirs in zip(rates[name], rates[other], strict=True))
            for other in ("one by one", "static batches of 8")
        ]
        click.echo(f"| {name} | {statistics.median(rates[name]):.1f} | {ratios[0]:.2f} | {ratios[1]:.2f} |")


if __name__ == "__main__":
    main()
