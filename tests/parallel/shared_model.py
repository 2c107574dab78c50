"""A rank of a test, as a process: golden models one after the other, on a leader and its followers.

`python shared_model.py RANK SIZE PORT CASE...`, a case being NAME:KERNELS:WEIGHTS; the NAME of an adapter's golden is
its base with all rows asking for it. The leader prints a line of JSON a case; with `tcp` among the cases the ranks
add through their connections.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

import numpy as np
from ranks import link, steps_of

from inference import kernels
from inference.checkpoint.open import open_checkpoint
from inference.config import load_config
from inference.context import build_context
from inference.kernels.formats import Format
from inference.models.architecture.config import ModelConfig
from inference.models.architecture.registry import model_config_from
from inference.models.architecture.t5_config import AnyConfig
from inference.models.encoder_decoder import EncoderDecoderRunner
from inference.models.runner import ModelRunner
from inference.models.step import SequenceStep, StepBatch
from inference.models.tensor_parallel import LeadingRunner, follow
from inference.models.weights import loading
from inference.models.weights.lora import Adapter, Adapters, read_adapter
from inference.models.weights.sharding import Shard
from inference.parallel.connections import Links
from inference.parallel.group import Group, native_group
from inference.parallel.start import join
from inference.parallel.topology import Topology

GOLDENS = Path(__file__).parents[1] / "goldens"
BLOCK = 16
# Steps of an answer at most.
STEPS = 64
LORA = "lora/"


def build(name: str, kind: str, weight_format: str, links: Links, group: Group) -> tuple[ModelRunner, list]:
    chosen = kernels.choose(kind, device_target="CPU", mode=0, block_size=BLOCK, threads=1, say=print)
    directory = base_of(name)
    config = model_config_from(json.loads((directory / "config.json").read_text()), name)
    prompts = prompts_of(name)
    shard = Shard(config, links.topology.model_rank, links.topology.model_parallel)
    pairs = shard.cut(loading.fit(open_checkpoint(directory), config, directory))
    # Of a source and its answer, each of which begins a block, no fewer than of a prompt with its answer.
    blocks = 1 + sum(-(-len(prompt) // BLOCK) - (-STEPS // BLOCK) for prompt in prompts)
    sizes = {"num_blocks": blocks, "block_size": BLOCK, "kernels": chosen, "weight_format": Format(weight_format)}
    kind_of_runner = ModelRunner if isinstance(config, ModelConfig) else EncoderDecoderRunner
    adapters = Adapters(None, adapters_of(name, config))
    return kind_of_runner(config, pairs, **sizes, shard=shard, group=group, adapters=adapters), prompts


def base_of(name: str) -> Path:
    """The model's directory."""
    directory = GOLDENS / name
    return GOLDENS / str(np.load(directory / "golden.npz")["base"]) if name.startswith(LORA) else directory


def adapters_of(name: str, config: AnyConfig) -> tuple[Adapter, ...]:
    """The one that all rows ask for, where there is one."""
    return (read_adapter("a", GOLDENS / name, config),) if name.startswith(LORA) else ()


def prompts_of(name: str) -> list[list[int]]:
    """The prompts of a golden, or its sources."""
    golden = np.load(GOLDENS / name / "golden.npz")
    key = "prompt" if "prompt_0" in golden else "source"
    return [golden[f"{key}_{i}"].tolist() for i in range(len(golden["lengths"]))]


def greedy(
    model: LeadingRunner, prompts: list[list[int]], steps: int, start: int | None = None, adapter: int = 0
) -> tuple[list[list[int]], list]:
    """So many greedy tokens of all prompts, run together; and the last logits.

    Args:
        adapter: of all rows.
        start: the token that answers begin with, where the prompts are sources of a model with an encoder.
    """
    free = list(range(1, model.num_blocks))
    sources: list[tuple[list[int], int] | None] = [None] * len(prompts)
    if start is not None:
        sources = [([free.pop() for _ in range(-(-len(prompt) // BLOCK))], len(prompt)) for prompt in prompts]
        encoded = [(prompt, 0, source[0]) for prompt, source in zip(prompts, sources, strict=True) if source]
        parts = [SequenceStep(*part, adapter=adapter) for part in encoded]
        model.encode(StepBatch.build(parts, BLOCK))
        prompts = [[start] for _ in prompts]
    # The last token is not a step's input.
    tables = [[free.pop() for _ in range(-(-(len(prompt) + STEPS - 1) // BLOCK))] for prompt in prompts]
    texts, starts = [list(prompt) for prompt in prompts], [0] * len(prompts)
    for step in range(steps):
        rows = zip(texts, starts, tables, sources, strict=True)
        parts = [SequenceStep(t[s:], s, *rest, adapter=adapter) for t, s, *rest in rows]
        last = step == steps - 1
        result = model.step(StepBatch.build(parts, BLOCK, logit_rows=None if last else []))
        starts = [len(text) for text in texts]
        for text, token in zip(texts, result.best, strict=True):
            text.append(int(token))
    assert (result.best == result.logits.argmax(axis=1)).all()
    return [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)], result.logits.tolist()


def main() -> None:
    rank, size, port, *cases = sys.argv[1:]
    build_context({"use_parallel": True, "context": {"mode": 0, "device_target": "CPU"}})
    # MindSpore collects garbage at every compilation.
    gc.freeze()
    group: Group | None = None
    if cases[0].split(":")[1] == "stock":
        ranks = join(load_config({"use_parallel": True}), Topology(int(rank), int(size)), False)
        links, group = ranks.links, ranks.group
    else:
        links = link(int(rank), int(size), 1, int(port))
        links.watch()
    for case in cases:
        if case == "tcp":
            Links.on_one_host = property(lambda self: False)  # type: ignore[method-assign, assignment]
            group = None
            continue
        name, kind, weight_format = case.split(":")
        group = group or native_group(links)
        runner, prompts = build(name, kind, weight_format, links, group)
        runner.compile()
        if links.leader is not None:
            follow(runner, links)
            links.watch()
            links.leader.send("left")
            continue
        model = LeadingRunner(runner, links)
        before = group.native.figures()[0] if group.native else 0
        steps, adapter = steps_of(kind, int(size)), int(name.startswith(LORA))
        tokens, logits = greedy(model, prompts, steps, runner.config.decoder_start, adapter)
        sums = (group.native.figures()[0] - before) / steps if group.native else 0
        model.close()
        for channel in links.followers:
            channel.expect("left")
        links.watch()
        figures = {"case": case, "transport": group.transport, "tokens": tokens, "logits": logits, "sums": sums}
        print(json.dumps(figures), flush=True)
    links.unwatch()
    links.close()


if __name__ == "__main__":
    main()
