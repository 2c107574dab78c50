"""Measures what the masks of structured answers cost in a step of 16 rows.

    python scripts/bench_masks.py --model model.gguf

Runs the same rows with a JSON schema and without, and times the calls of the grammar apart. The prompts ask for a list
of objects, so that answers are long.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import click

SCHEMA: dict[str, Any] = {
    "type": "array",
    "minItems": 50,
    "items": {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "tags": {"type": "array"}},
        "required": ["name", "age"],
    },
}


class Stopwatch:
    """Adds up the time in some calls."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def watch(self, owner: type, name: str) -> None:
        """Time all calls of a method."""
        act: Callable[..., Any] = getattr(owner, name)

        def timed(*arguments: Any) -> Any:
            started = time.perf_counter()
            try:
                return act(*arguments)
            finally:
                self.seconds += time.perf_counter() - started

        setattr(owner, name, timed)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--model", required=True, help="a checkpoint with a tokenizer, or a GGUF file")
@click.option("--rows", default=16, show_default=True)
@click.option("--new", default=64, show_default=True, help="new tokens of each row")
@click.option("--threads", default=2, show_default=True)
@click.option("--rounds", default=3, show_default=True)
def main(model: str, rows: int, new: int, threads: int, rounds: int) -> None:
    """Print a table."""
    from inference import LLM, load_config
    from inference.engine.engine import Engine
    from inference.structured.constraint import GrammarConstraint

    grammar, steps = Stopwatch(), Stopwatch()
    for name in ("allowed", "advance", "forced"):
        grammar.watch(GrammarConstraint, name)
    steps.watch(Engine, "_advance")
    engine = {"threads": threads, "speculation": "none"}
    llm = LLM(load_config({"pretrained_model_dir": model, "predict_batch_size": rows, "engine": engine}))
    prompts = [f"List {number + 20} dogs as JSON." for number in range(rows)]
    settings: dict[str, dict[str, Any]] = {"plain": {}, "with a schema": {"structured_outputs": {"json": SCHEMA}}}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in settings}
    for turn in range(rounds + 1):
        for name, more in settings.items():
            grammar.seconds = steps.seconds = 0.0
            done = list(llm.generate(prompts, max_new_tokens=new, ignore_eos=True, **more))
            count = max(one.completion_tokens for one in done)
            if turn:  # the first is a warm-up
                found[name].append((steps.seconds / count, grammar.seconds / count))
    click.echo(f"{Path(model).name}: {rows} rows, {new} new tokens each, {threads} threads, {rounds} rounds\n")
    click.echo("| | time of a step | in the grammar | share |\n| --- | --- | --- | --- |")
    for name, pairs in found.items():
        step, part = (statistics.median(values) * 1000 for values in zip(*pairs, strict=True))
        click.echo(f"| {name} | {step:.1f} ms | {part:.2f} ms | {part / step:.1%} |")


if __name__ == "__main__":
    main()
