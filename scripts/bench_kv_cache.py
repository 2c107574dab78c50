"""Measure decode tokens/s of one row at several lengths of context, with the KV cache in each type.

The model has random int8 weights. No prompt is run: the cache is filled with constants, which take as long to read. The
types take turns, and each figure is the median of the turns, with the slowest and the fastest.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from inference.kernels import native
from inference.kernels.formats import Format
from inference.kernels.shapes import CACHE_DTYPES
from inference.models.architecture.registry import model_config_from
from inference.models.kv_cache import block_bytes
from inference.models.runner import ModelRunner
from inference.models.step import SequenceStep, StepBatch

BLOCK_SIZE = 16
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 4096,
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}


def make_runner(dtype: str, length: int) -> ModelRunner:
    config = model_config_from(MODEL | {"max_position_embeddings": length}, "random weights")
    sizes = {"num_blocks": length // BLOCK_SIZE + 2, "block_size": BLOCK_SIZE}
    runner = ModelRunner(config, None, kernels=native, weight_format=Format.INT8, cache_dtype=dtype, seed=1, **sizes)
    runner.warm_up()
    for part in (part for layer in runner._caches for part in layer):
        if dtype == "int8":
            part[...] = 1
            # The last bytes of a head's block are its scales.
            heads = part.reshape(*part.shape[:2], -1)
            heads[..., -4 * BLOCK_SIZE :].view(np.float32)[...] = 0.01
        else:
            part[...] = 0.01
    return runner


def seconds_per_token(runner: ModelRunner, length: int, tokens: int) -> float:
    table = list(range(1, runner.num_blocks))
    started = time.perf_counter()
    for position in range(length, length + tokens):
        runner.step(StepBatch.build([SequenceStep([5], position, table)], BLOCK_SIZE))
    return (time.perf_counter() - started) / tokens


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--lengths", default="2048,8192,32000", help="Positions before the measured tokens.", show_default=True)
@click.option("--turns", default=11, help="Measured turns of each type.", show_default=True)
@click.option("--tokens", default=4, help="Tokens of a turn.", show_default=True)
def main(lengths: str, turns: int, tokens: int) -> None:
    places = [int(length) for length in lengths.split(",")]
    runners = {dtype: make_runner(dtype, max(places) + tokens) for dtype in CACHE_DTYPES}
    click.echo(
        "| context | KV cache | bytes per position | decode, tok/s | slowest to fastest |\n|---|---|---|---|---|"
    )
    for length in places:
        times: dict[str, list[float]] = {dtype: [] for dtype in runners}
        for turn in range(turns + 1):
            for dtype, runner in runners.items():
                seconds = seconds_per_token(runner, length, tokens)
                if turn:
                    times[dtype].append(seconds)
        for dtype, seconds in times.items():
            size = block_bytes(runners[dtype].config, BLOCK_SIZE, dtype) // BLOCK_SIZE
            spread = f"{1 / max(seconds):.1f} to {1 / min(seconds):.1f}"
            click.echo(f"| {length:,} | {dtype} | {size:,} | {1 / statistics.median(seconds):.1f} | {spread} |")


if __name__ == "__main__":
    main()
