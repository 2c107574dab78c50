"""This project as a measured program.

    python -m benchmarking.ours {"action": "measure", "model": DIR, "dtype": "int4", "kernels": "native", "threads": 2}

`measure` prints all figures, `startup` those up to the first token.
"""

from __future__ import annotations

import json
import math
import sys
import time
from typing import Any

from benchmarking import process, workload
from benchmarking.workload import Lengths, Run


class Ours:
    """A loaded model, and the time of each part of its start-up.

    Args:
        directory: the checkpoint, as published or converted.
        dtype: `engine.weight_dtype`.
        kernels: native or stock, without a fallback.
        positions: size of the KV cache.
        max_sequences: maximum rows per step.
    """

    def __init__(self, directory: str, dtype: str, kernels: str, threads: int, positions: int, max_sequences: int):
        from inference import build_context, load_config
        from inference.generation.model import GenerativeModel
        from inference.models.source import resolve
        from inference.terminal.output import say

        engine = {"weight_dtype": dtype, "kernels": kernels, "threads": threads, "max_sequences": max_sequences}
        # Repeated prompts must be computed again.
        config = load_config({"pretrained_model_dir": directory, "engine": {**engine, "prefix_cache": False}})
        source = resolve(config)
        pairs = source.pairs()
        self.startup = {"python_s": process.age()}
        self.startup["import_s"] = build_context(config).import_seconds
        self.model = GenerativeModel(source, pairs, positions=positions, say=say)
        self.startup["load_s"] = self.model.runner.times.load
        self.startup["compile_s"] = self.model.runner.times.compile
        self._stock = kernels == "stock"

    def generate(self, rows: list[list[int]], new: int) -> Run:
        """See `workload.Program`."""
        from inference.config import GenerationConfig
        from inference.engine.request import Request

        generation = GenerationConfig(ignore_eos=True)
        requests = [Request(str(row), ids, generation, new) for row, ids in enumerate(rows)]
        first = last = 0.0
        tokens = 0
        with self.model.engine() as engine:
            started = time.perf_counter()
            for request in requests:
                engine.add(request)
            while engine.busy:
                ready = engine.step()
                if first and len(ready) == len(rows):
                    tokens, last = tokens + len(ready), time.perf_counter()
                elif not first and all(request.output_ids for request in requests):
                    first = time.perf_counter()
        rate = tokens / (last - first) if tokens else 0.0
        return Run(first - started, rate, [request.output_ids for request in requests])

    def many(self, requests: list[tuple[list[int], int]], at_once: int | None = None) -> tuple[float, list[list[int]]]:
        """Run prompts submitted at once, each with its own number of new tokens; return (seconds, new ids of each).

        Args:
            at_once: maximum rows per step, if not the model's.
        """
        from inference.config import GenerationConfig
        from inference.engine.engine import Engine
        from inference.engine.request import Request

        generation = GenerationConfig(ignore_eos=True)
        made = [Request(str(row), ids, generation, new) for row, (ids, new) in enumerate(requests)]
        most = at_once or self.model.max_sequences
        engine = Engine(self.model.runner, max_sequences=most, prefix_cache=False)
        started = time.perf_counter()
        for request in made:
            engine.add(request)
        while engine.busy:
            engine.step()
        return time.perf_counter() - started, [request.output_ids for request in made]

    def sizes(self) -> dict[str, float]:
        """Return the bytes of all weights, of those that one token reads, and of the KV cache."""
        from inference.models import kv_cache
        from inference.models.weights.parameters import EMBEDDING, parameter_shapes
        from inference.models.weights.weight_formats import formats_of, layout_bytes, memory_layout

        runner, engine = self.model.runner, self.model.source.config.engine
        formats = formats_of(runner.config, runner.weight_format)
        sizes = {
            # Stock operators compute in float32, regardless of the format that the weights were rounded to.
            name: 4 * math.prod(shape) if self._stock else layout_bytes(memory_layout(shape, formats[name]))
            for name, shape in parameter_shapes(runner.config).items()
        }
        # A token reads only one row of the input embedding, unless it is also the output head.
        unread = 0 if runner.config.tie_embeddings else sizes[EMBEDDING]
        dtype = "float32" if self._stock else engine.kv_cache_dtype
        kv = kv_cache.block_bytes(runner.config, engine.block_size, dtype) * runner.num_blocks
        weights = sum(sizes.values())
        return {"weight_bytes": weights, "token_bytes": weights - unread, "kv_bytes": kv}


def main(job: dict[str, Any]) -> dict[str, object]:
    """Return the figures of a job."""
    lengths = Lengths()
    # One extra cache block per row, because lengths are rounded up to whole blocks.
    spare = 32 * max(lengths.batches)
    is_measured = job["action"] == "measure"
    positions = lengths.positions + spare if is_measured else 256
    program = Ours(job["model"], job["dtype"], job["kernels"], job["threads"], positions, max(lengths.batches))
    vocabulary = program.model.config.vocab_size
    if is_measured:
        figures = workload.measure(program, vocabulary, lengths)
    else:
        figures = {"first_token_s": workload.first_token(program, vocabulary)}
        figures["peak_mb"] = process.peak_memory() / 1e6
    return {**program.startup, **figures, **program.sizes(), "version": _version()}


def _version() -> str:
    import mindspore

    return f"mindspore {mindspore.__version__}"


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
