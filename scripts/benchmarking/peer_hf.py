"""Hugging Face transformers' `generate` as a measured program.

python -m benchmarking.peer_hf {"action": "measure", "model": DIR, "dtype": "float32", "threads": 2}
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from benchmarking import process, workload
from benchmarking.workload import Lengths, Run


class Transformers:
    """A checkpoint loaded by `AutoModelForCausalLM`."""

    def __init__(self, directory: str, dtype: str, threads: int):
        import torch
        from transformers import AutoModelForCausalLM, StoppingCriteriaList, logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        torch.set_num_threads(threads)
        self._torch, self._criteria = torch, StoppingCriteriaList
        self.model = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype)).eval()
        # Otherwise it would stop early.
        self.model.generation_config.eos_token_id = None

    def generate(self, rows: list[list[int]], new: int) -> Run:
        """See `workload.Program`."""
        torch = self._torch
        ids = torch.tensor(rows)
        moments: list[float] = []

        def note(tokens: Any, scores: Any, **_: Any) -> Any:
            # Called after each token; a streamer supports only one row.
            moments.append(time.perf_counter())
            return torch.zeros(len(tokens), dtype=torch.bool)

        started = time.perf_counter()
        with torch.inference_mode():
            out = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
                stopping_criteria=self._criteria([note]),
            )
        return Run.of_steps(started, moments, out[:, ids.shape[1] :].tolist())


def main(job: dict[str, Any]) -> dict[str, object]:
    """Return the figures of a job."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    python = process.age()
    started = time.perf_counter()
    import torch
    import transformers
    from transformers import AutoModelForCausalLM  # noqa: F401  (transformers imports its parts lazily)

    loaded = time.perf_counter()
    program = Transformers(job["model"], job["dtype"], job["threads"])
    times = {"python_s": python, "import_s": loaded - started, "load_s": time.perf_counter() - loaded}
    config = program.model.config
    lengths = Lengths()
    figures = workload.measure(program, config.vocab_size, lengths)
    parameters = {name: tensor.nbytes for name, tensor in program.model.named_parameters()}
    unread = 0 if config.tie_word_embeddings else parameters["model.embed_tokens.weight"]
    weights = sum(parameters.values())
    kv = workload.kv_bytes(config.to_dict(), lengths.positions, program.model.dtype.itemsize)
    figures |= {"weight_bytes": weights, "token_bytes": weights - unread, "kv_bytes": kv}
    return {**times, **figures, "version": f"transformers {transformers.__version__}, torch {torch.__version__}"}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
