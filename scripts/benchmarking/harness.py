"""Runs one task of a peer benchmark's harness and prints its figures as a JSON line.

The harness gives every peer the same prompts file, `{"requests": [{"prompt_ids", "max_new_tokens"}, ...]}`, and
compares `ttft_s`, `decode_tok_s`, `prefill_tok_s`, `batch_tok_s`, `startup_s` and `out_ids`; it measures memory
externally.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmarking.ours import Ours
from benchmarking.workload import COMPARED

DTYPES = {"fp32": "float32", "f32": "float32", "bf16": "bfloat16", "fp16": "float16", "f16": "float16"}
TASKS = ("single", "prefill", "batch", "startup")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the harness's arguments."""
    parser = argparse.ArgumentParser(prog="bench.py --harness", description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, required=True, help="checkpoint directory")
    parser.add_argument("--prompts", type=Path, required=True, help="the harness's prompts file")
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--dtype", required=True, help="fp32, bf16, f16, int8, int4, or a name of engine.weight_dtype")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--slots", type=int, default=8, help="most sequences at once, for task batch")
    parser.add_argument("--reps", type=int, default=1, help="timed repeats; medians are given")
    parser.add_argument("--kernels", choices=("native", "stock"), default="native")
    parser.add_argument(
        "--converted", type=Path, help="take DIR/<model>-<weight dtype>, as --run_mode convert writes it"
    )
    return parser.parse_args(arguments)


def model_directory(arguments: argparse.Namespace, dtype: str) -> Path:
    """Return the checkpoint, or its converted directory if requested."""
    if arguments.converted is None:
        return arguments.model
    directory = arguments.converted / f"{arguments.model.resolve().name}-{dtype}"
    if not (directory / "config.json").exists():
        sys.exit(f"bench.py: {directory} is not there: write it with run_inference.py --run_mode convert")
    return directory


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the task's figures; those of other tasks are None."""
    # Without the harness, measure from the start of this process.
    spawned = float(os.environ.get("BENCH_T0") or time.time())
    given = json.loads(arguments.prompts.read_text(encoding="utf-8"))["requests"]
    requests = [(request["prompt_ids"], request["max_new_tokens"]) for request in given]
    dtype = DTYPES.get(arguments.dtype, arguments.dtype)
    slots = arguments.slots if arguments.task == "batch" else 1
    positions = sum(sorted((len(ids) + new + 32 for ids, new in requests), reverse=True)[:slots])
    program = Ours(
        str(model_directory(arguments, dtype)), dtype, arguments.kernels, arguments.threads, positions, slots
    )
    names = ("ttft_s", "decode_tok_s", "prefill_tok_s", "batch_tok_s", "startup_s")
    figures: dict[str, Any] = {**dict.fromkeys(names), **program.startup}
    ids, new = requests[0]
    if arguments.task == "startup":
        outs = program.generate([ids], 1).ids
        return figures | {"startup_s": time.time() - spawned, "out_ids": outs}
    program.generate([ids[:16]], 3)
    if arguments.task == "batch":
        batches = [program.many(requests) for _ in range(arguments.reps)]
        total = sum(new for _, new in requests)
        figures["batch_tok_s"] = total / statistics.median(seconds for seconds, _ in batches)
        outs = batches[-1][1]
    else:
        runs = [program.generate([ids], new if arguments.task == "single" else 1) for _ in range(arguments.reps)]
        figures["ttft_s"] = statistics.median(run.first for run in runs)
        figures["prefill_tok_s"] = len(ids) / figures["ttft_s"]
        if arguments.task == "single":
            figures["decode_tok_s"] = statistics.median(run.rate for run in runs)
        outs = runs[-1].ids
    return figures | {"out_ids": [out[:COMPARED] for out in outs]}


def main(arguments: list[str]) -> None:
    """Print the JSON line."""
    print(json.dumps(run(parse(arguments))), flush=True)
