"""llama.cpp as a measured program, through llama-cpp-python's low-level calls.

    python -m benchmarking.peer_llamacpp JOB

The job is JSON: action, model, dtype, threads, `file` (the GGUF file) and `wide_file` (the one in f32). `prepare`
writes the file: f32 and f16 with `gguf_file`, the others from f32 with llama.cpp's own quantizer, as its users do.
`measure` prints all figures.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarking import gguf_file, process, workload
from benchmarking.workload import Lengths, Run

# llama.h, enum llama_ftype.
FILE_TYPES = {"q4_0": 2, "q8_0": 7}
BATCH = 2048


def prepare(job: dict[str, Any]) -> None:
    """Write the GGUF file of a job atomically."""
    target = Path(job["file"])
    if job["dtype"] not in FILE_TYPES:
        gguf_file.write(Path(job["model"]), target, job["dtype"])
        return
    import ctypes

    import llama_cpp

    wide, part = Path(job["wide_file"]), target.with_name(target.name + ".part")
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = FILE_TYPES[job["dtype"]], job["threads"]
    if llama_cpp.llama_model_quantize(str(wide).encode(), str(part).encode(), ctypes.byref(parameters)):
        raise SystemExit(f"llama.cpp cannot quantize {wide}")
    part.replace(target)


class LlamaCpp:
    """A loaded GGUF file. Each run gets a context of exactly its size; keys and values are float16, the default."""

    def __init__(self, path: str, threads: int):
        import llama_cpp

        self._library, self._threads = llama_cpp, threads
        _silence(llama_cpp)
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        self.positions = 0
        self._sampler = llama_cpp.llama_sampler_init_greedy()
        self._batch = llama_cpp.llama_batch_init(BATCH, 0, 1)

    def generate(self, rows: list[list[int]], new: int) -> Run:
        """See `workload.Program`."""
        context = self._context(len(rows), len(rows[0]) + new)
        ids: list[list[int]] = [[] for _ in rows]
        started = time.perf_counter()
        self._batch.n_tokens = 0
        ends = []
        for row, prompt in enumerate(rows):
            for position, token in enumerate(prompt):
                self._add(token, position, row, position == len(prompt) - 1)
            ends.append(self._batch.n_tokens - 1)
        moments = [self._step(context, ids, ends)]
        for position in range(len(rows[0]), len(rows[0]) + new - 1):
            self._batch.n_tokens = 0
            for row, chosen in enumerate(ids):
                self._add(chosen[-1], position, row, True)
            moments.append(self._step(context, ids, range(len(rows))))
        self._library.llama_free(context)
        return Run.of_steps(started, moments, ids)

    def _context(self, rows: int, positions: int) -> Any:
        parameters = self._library.llama_context_default_params()
        # llama.cpp itself rounds a sequence's share of the cache up to 256 positions.
        parameters.n_ctx, parameters.n_batch, parameters.n_seq_max = rows * positions, BATCH, rows
        parameters.n_threads = parameters.n_threads_batch = self._threads
        context = self._library.llama_init_from_model(self._model, parameters)
        if not context:
            raise SystemExit("llama.cpp cannot make a context")
        self.positions = max(self.positions, self._library.llama_n_ctx(context))
        return context

    def _add(self, token: int, position: int, row: int, wanted: bool) -> None:
        batch, index = self._batch, self._batch.n_tokens
        batch.token[index], batch.pos[index], batch.logits[index] = token, position, wanted
        batch.n_seq_id[index], batch.seq_id[index][0] = 1, row
        batch.n_tokens = index + 1

    def _step(self, context: Any, ids: list[list[int]], ends: Any) -> float:
        status = self._library.llama_decode(context, self._batch)
        if status:
            raise SystemExit(f"llama_decode gives {status}")
        for chosen, end in zip(ids, ends, strict=True):
            chosen.append(self._library.llama_sampler_sample(self._sampler, context, end))
        return time.perf_counter()


def _silence(library: Any) -> None:
    import ctypes

    _silence.callback = library.llama_log_callback(lambda level, text, data: None)  # type: ignore[attr-defined]
    library.llama_log_set(_silence.callback, ctypes.c_void_p(0))  # type: ignore[attr-defined]


def sizes(path: str, config: dict[str, Any]) -> dict[str, int]:
    """Return the bytes of all weights in a file, and of those that one token reads."""
    import gguf

    weights = {tensor.name: int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors}
    unread = 0 if config.get("tie_word_embeddings") else weights["token_embd.weight"]
    return {"weight_bytes": sum(weights.values()), "token_bytes": sum(weights.values()) - unread}


def measure(job: dict[str, Any]) -> dict[str, object]:
    """Return the figures of a job."""
    python = process.age()
    started = time.perf_counter()
    import llama_cpp

    loaded = time.perf_counter()
    program = LlamaCpp(job["file"], job["threads"])
    times = {"python_s": python, "import_s": loaded - started, "load_s": time.perf_counter() - loaded}
    config = json.loads((Path(job["model"]) / "config.json").read_text(encoding="utf-8"))
    figures = workload.measure(program, config["vocab_size"], Lengths())
    kv = workload.kv_bytes(config, program.positions, 2)
    version = f"llama-cpp-python {llama_cpp.__version__}"
    return {**times, **figures, **sizes(job["file"], config), "kv_bytes": kv, "version": version}


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(json.dumps(prepare(given) if given["action"] == "prepare" else measure(given)))
