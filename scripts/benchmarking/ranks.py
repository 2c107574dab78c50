"""One rank of a shared model as a measured program.

    python -m benchmarking.ranks {"model": DIR, "dtype": "int8", "prompt": 128, "new": 64}

The environment determines the rank, as set by msrun. The leader prints the figures.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import closing
from typing import Any

import numpy as np

SEED = 3


def main(job: dict[str, Any]) -> None:
    """Run the job on this rank."""
    from inference import build_context, load_config
    from inference.config import GenerationConfig
    from inference.engine.request import Request
    from inference.generation.model import GenerativeModel
    from inference.generation.ranks import join_ranks, run_follower
    from inference.models.source import resolve
    from inference.parallel.topology import check_topology, is_worker
    from inference.terminal.output import say

    engine = {"weight_dtype": job["dtype"], "kernels": "native", "prefix_cache": False}
    config = load_config({"pretrained_model_dir": job["model"], "use_parallel": is_worker(), "engine": engine})
    topology = check_topology(config)
    source = resolve(config)
    pairs = source.pairs(topology.model_rank)
    build_context(config)
    kernels, ranks = join_ranks(config, topology, say)
    if not topology.is_leader:
        assert ranks is not None
        run_follower(source, pairs, kernels, ranks, say)
        return
    positions = job["prompt"] + job["new"] + engine_block(config)
    model = GenerativeModel(source, pairs, positions=positions, ranks=ranks, kernels=kernels, say=say)
    prompt = np.random.default_rng(SEED).integers(3, source.model.vocab_size, job["prompt"]).tolist()
    with closing(model), model.engine() as running:
        # The first run warms up caches and threads.
        for _ in range(2):
            request = Request("0", prompt, GenerationConfig(ignore_eos=True), job["new"])
            running.add(request)
            started = time.perf_counter()
            running.step()
            prefill, waited = time.perf_counter() - started, _waited(model)
            started = time.perf_counter()
            while running.busy:
                running.step()
            decode = time.perf_counter() - started
            waited = _waited(model) - waited
    figures = {
        "prefill_rate": job["prompt"] / prefill,
        "decode_rate": (job["new"] - 1) / decode,
        "communication": waited / decode,
        "transport": ranks.group.transport if ranks and ranks.group else "",
    }
    print(json.dumps(figures), flush=True)


def engine_block(config: Any) -> int:
    """Return the positions that rounding up to whole blocks may add."""
    return int(config.engine.block_size)


def _waited(model: Any) -> float:
    """Return the seconds that the leader has waited for other ranks so far: sums, and results of the head."""
    group = model.runner.group
    return group.native.figures()[1] + model.stepper.gathering_seconds if group else 0.0


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
