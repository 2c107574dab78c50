"""Measures rows per second through Apache Beam, beside the same rows through --run_mode predict.

    python scripts/bench_beam.py [--rows 1024] [--max_new_tokens 48] [--rounds 3]

Each round runs both, one after the other, in separate processes. The time excludes imports and model loading, but
includes all of Beam's overhead.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs/demo/predict_demo.yaml"
BEGINNINGS = ("Once upon a time", "The little dog", "What is 3 + 4?", "One day a girl", "In a big house", "The sun")


def make_rows(path: Path, count: int) -> None:
    """Write prompts of several lengths, the same at each call."""
    draw = random.Random(1)
    rows = []
    for number in range(count):
        prompt = " ".join(draw.choice(BEGINNINGS) for _ in range(draw.randint(1, 5)))
        rows.append({"custom_id": str(number), "prompt": prompt})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def through_predict(rows: Path, tokens: int) -> dict[str, float]:
    """Run the command line; return its seconds, rows and new tokens."""
    out, figures = rows.with_name("predict.jsonl"), rows.with_name("figures.json")
    command = [sys.executable, ROOT / "run_inference.py", "--config", CONFIG, "--max_new_tokens", str(tokens)]
    command += ["--predict_data", rows, "--save_file", out, "--overwrite", "--metrics_file", figures]
    subprocess.run(command, check=True, capture_output=True, env=_environment())
    found = json.loads(figures.read_text())
    return {"seconds": found["wall_seconds"], "rows": found["requests"], "tokens": found["completion_tokens"]}


def through_beam(rows: Path, tokens: int) -> dict[str, float]:
    """Run a pipeline from file to file through RunInference; return its seconds, rows and new tokens."""
    command = [sys.executable, __file__, "--child", rows, "--max_new_tokens", str(tokens)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=_environment())
    return json.loads(done.stdout.splitlines()[-1])


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


def run_child(rows: Path, tokens: int) -> None:
    """Run the pipeline in this process and print how long it took, without loading the model."""
    import apache_beam as beam

    from inference.beam import MindSporeModelHandler, RunInference

    handler = MindSporeModelHandler(CONFIG)
    transform = RunInference(handler, inference_args={"max_new_tokens": tokens})
    pipeline = beam.Pipeline(argv=[])
    _ = (
        pipeline
        | beam.io.ReadFromText(str(rows))
        | beam.Map(json.loads)
        | transform
        | beam.Map(lambda result: json.dumps(result.inference))
        | beam.io.WriteToText(str(rows.with_name("beam")), file_name_suffix=".jsonl")
    )
    started = time.perf_counter()
    result = pipeline.run()
    result.wait_until_finish()
    seconds = time.perf_counter() - started
    found = result.metrics().query()
    counters = {item.key.metric.name: item.committed for item in found["counters"]}
    loads = [item for item in found["distributions"] if item.key.metric.name == "load_model_latency_milli_secs"]
    seconds -= sum(item.committed.sum for item in loads) / 1e3
    figures = {"seconds": seconds, "rows": counters["num_inferences"], "tokens": counters["completion_tokens"]}
    print(json.dumps(figures))


@click.command()
@click.option("--rows", default=1024, show_default=True, help="Prompts.")
@click.option("--max_new_tokens", default=48, show_default=True, help="The most tokens of an answer.")
@click.option("--rounds", default=3, show_default=True, help="Runs of each, in turns.")
@click.option("--child", type=click.Path(path_type=Path), hidden=True)
def main(rows: int, max_new_tokens: int, rounds: int, child: Path | None) -> None:
    """Print a table: rows and new tokens per second, median and spread."""
    if child is not None:
        run_child(child, max_new_tokens)
        return
    ways = {"--run_mode predict": through_predict, "Beam, DirectRunner": through_beam}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "rows.jsonl")
        make_rows(file, rows)
        for _ in range(rounds):
            for name, run in ways.items():
                found[name].append(run(file, max_new_tokens))
    print(f"{rows} rows, at most {max_new_tokens} new tokens each, {rounds} rounds, demo model\n")
    print("| way | rows/s | spread | new tokens/s | share |\n|---|---|---|---|---|")
    first = None
    for name, runs in found.items():
        rates = [run["rows"] / run["seconds"] for run in runs]
        median = statistics.median(rates)
        first = first or median
        tokens = statistics.median(run["tokens"] / run["seconds"] for run in runs)
        print(f"| {name} | {median:.1f} | {min(rates):.1f}-{max(rates):.1f} | {tokens:.0f} | {median / first:.2f} |")


if __name__ == "__main__":
    main()
