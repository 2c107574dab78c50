"""Measures speed and size on this machine and prints a table.

    python scripts/bench.py                                  # llama-1b in every weight format, and the start-up
    python scripts/bench.py --models llama-15m --dtypes float32,int4 --rounds 5
    python scripts/bench.py --format jsonl --save results.jsonl

Checkpoints have random weights and are made once, in --work. Every measurement is a process of its own; the
processes of a round follow one another and the rounds are repeated, so that a machine that is busy for a while does
not favour one of them. Figures are medians over the rounds.

Columns: load and compile, seconds; prefill, tokens/s of a prompt of 512; TTFT of a prompt of 128, milliseconds; decode,
tokens/s at batch 1, 4 and 16 after prompts of 128; roof, the share of (memory bandwidth / bytes of weights that a
token needs) that decode at batch 1 reaches, the bandwidth measured in the same process; peak memory, MB.
"""

from __future__ import annotations

import csv
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


@dataclass(frozen=True)
class Shape:
    """A Llama or Qwen2 architecture to measure."""

    architecture: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    width: int
    vocabulary: int
    tied: bool

    def config(self) -> dict[str, object]:
        """As config.json."""
        return {
            "architectures": [self.architecture],
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.width,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.tied,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "eos_token_id": 2,
        }


SHAPES = {
    "llama-1b": Shape("LlamaForCausalLM", 22, 2048, 32, 4, 5632, 32000, False),
    "qwen2-0.5b": Shape("Qwen2ForCausalLM", 24, 896, 14, 2, 4864, 151936, True),
    "llama-15m": Shape("LlamaForCausalLM", 6, 288, 6, 6, 768, 32000, True),
}
PROMPT, ANSWER, PREFILL, BATCHES = 128, 128, 512, (4, 16)
COLUMNS = {
    "load_s": "load s",
    "compile_s": "compile s",
    "prefill_tok_s": "prefill tok/s",
    "ttft_ms": "TTFT ms",
    "decode_1_tok_s": "decode tok/s",
    "decode_4_tok_s": "batch 4",
    "decode_16_tok_s": "batch 16",
    "roof": "roof",
    "peak_mb": "peak MB",
}


def make_checkpoint(work: Path, name: str) -> Path:
    """A bfloat16 checkpoint with random weights, made once."""
    from inference.models.parameters import tensor_places
    from inference.models.registry import model_config_from

    directory = work / name
    if (directory / "config.json").exists():
        return directory
    values = SHAPES[name].config()
    directory.mkdir(parents=True, exist_ok=True)
    places = tensor_places(model_config_from(values, name))
    header, offset = {}, 0
    for place in places:
        size = 2 * int(np.prod(place.shape))
        header[place.name] = {"dtype": "BF16", "shape": place.shape, "data_offsets": [offset, offset + size]}
        offset += size
    generator = np.random.default_rng(0)
    with (directory / "model.safetensors").open("wb") as file:
        text = json.dumps(header).encode()
        file.write(len(text).to_bytes(8, "little") + text)
        for place in places:
            count = int(np.prod(place.shape))
            scale = 0.02 if len(place.shape) > 1 else 0.0
            numbers = generator.standard_normal(count, dtype=np.float32) * scale + (0.0 if scale else 1.0)
            file.write((numbers.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes())
    (directory / "config.json").write_text(json.dumps(values))
    return directory


def measure(directory: Path, dtype: str, kernels: str, threads: int) -> dict[str, float]:
    """All figures of one model in this process."""
    from inference import build_context, load_config
    from inference.generation.model import GenerativeModel, weight_format_of
    from inference.metrics import peak_memory
    from inference.models.source import resolve
    from inference.models.weights import weight_bytes

    config = load_config(
        {
            "pretrained_model_dir": str(directory),
            "engine": {"weight_dtype": dtype, "kernels": kernels, "threads": threads, "max_sequences": 16},
        }
    )
    build_context(config)
    source = resolve(config)
    pairs = source.pairs()
    model = GenerativeModel(source, pairs, positions=max(BATCHES) * (PROMPT + ANSWER + 16))
    figures = {"load_s": model.runner.times.load, "compile_s": model.runner.times.compile}
    run(model, 1, PROMPT, 8)
    figures["prefill_tok_s"] = PREFILL / min(run(model, 1, PREFILL, 1)[0] for _ in range(2))
    ttft, rate = run(model, 1, PROMPT, ANSWER)
    figures["ttft_ms"], figures["decode_1_tok_s"] = ttft * 1000, rate
    bandwidth = read_bandwidth()
    for batch in BATCHES:
        figures[f"decode_{batch}_tok_s"] = run(model, batch, PROMPT, ANSWER // 4)[1]
    config_ = source.model
    memory_format = weight_format_of(source, pairs)
    needed = weight_bytes(config_, memory_format)
    if not config_.tie_embeddings:
        # A token reads one row of the input embedding.
        needed -= needed_by_embedding(config_, memory_format)
    figures["roof"] = figures["decode_1_tok_s"] * needed / bandwidth
    figures["bandwidth_gb_s"] = bandwidth / 1e9
    figures["peak_mb"] = peak_memory() / 1e6
    return figures


def needed_by_embedding(config: object, memory_format: object) -> int:
    """Bytes of the input embedding."""
    from inference.models.parameters import EMBEDDING
    from inference.models.weights import formats_of

    return config.vocab_size * formats_of(config, memory_format)[EMBEDDING].row_bytes(config.hidden_size)


def run(model: object, batch: int, prompt: int, answer: int) -> tuple[float, float]:
    """(seconds to the first token of all rows, tokens/s after it) of `batch` rows."""
    from inference.config import GenerationConfig
    from inference.request import Request

    generator = np.random.default_rng(batch)
    generation = GenerationConfig(ignore_eos=True)
    vocabulary = model.config.vocab_size
    with model.engine() as engine:
        for row in range(batch):
            ids = generator.integers(3, vocabulary, prompt).tolist()
            engine.add(Request(str(row), ids, generation, answer))
        started = time.perf_counter()
        waiting = batch
        while waiting:
            waiting -= sum(len(request.output_ids) == 1 for request in engine.step())
        first = time.perf_counter()
        tokens = 0
        while engine.busy:
            tokens += len(engine.step())
        seconds = time.perf_counter() - first
    return first - started, tokens / seconds if tokens else 0.0


def read_bandwidth() -> float:
    """Bytes a second that all threads read together: the best of eight passes over 1 GiB."""
    from inference.kernels.library import read_all

    array = np.ones(1 << 27, np.uint64)
    times = []
    for _ in range(8):
        started = time.perf_counter()
        read_all(array)
        times.append(time.perf_counter() - started)
    return array.nbytes / min(times)


def startup(rounds: int) -> dict[str, float]:
    """Seconds of whole processes on the demo model: help, check, and to the first token."""
    command = [sys.executable, str(ROOT / "run_inference.py")]
    demo = [*command, "--config", str(ROOT / "configs/demo/predict_demo.yaml")]
    calls = {
        "--help": [*command, "--help"],
        "--check": [*demo, "--check"],
        "a mistyped flag": [*demo, "--predict_btach_size", "2"],
        "an answer of one token": [*demo, "--predict_data", "Once upon a time", "--max_new_tokens", "1"],
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            started = time.perf_counter()
            subprocess.run(call, capture_output=True, check=False)
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def worker(work: Path, name: str, dtype: str, kernels: str, threads: int) -> dict[str, float]:
    """`measure` in a fresh process; an empty result, said on stderr, where it fails."""
    arguments = [str(work / name), dtype, kernels, str(threads)]
    done = subprocess.run(
        [sys.executable, __file__, "--worker", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        click.echo(f"{name} {dtype} {kernels} failed: {done.stderr.strip().splitlines()[-1:]}", err=True)
        return {}
    return json.loads(done.stdout.splitlines()[-1])


def medians(rows: list[dict[str, float]]) -> dict[str, float]:
    """Median of each figure, and the relative spread of decode at batch 1."""
    rows = [row for row in rows if row]
    if not rows:
        return {}
    result = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    decode = [row["decode_1_tok_s"] for row in rows]
    result["spread"] = (max(decode) - min(decode)) / result["decode_1_tok_s"]
    return result


def as_markdown(rows: list[dict[str, object]]) -> str:
    """A table for a README."""
    head = ["model", "weights", "kernels", *COLUMNS.values()]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        cells = [str(row["model"]), str(row["weights"]), str(row["kernels"])]
        cells += [number(row[key]) if key in row else "-" for key in COLUMNS]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def number(value: object) -> str:
    """Three significant digits, without an exponent."""
    assert isinstance(value, float)
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def render(rows: list[dict[str, object]], form: str) -> str:
    """The rows in the form that was asked for."""
    if form == "markdown":
        return as_markdown(rows)
    if form == "jsonl":
        return "\n".join(json.dumps(row) for row in rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().rstrip()


def machine() -> str:
    """What this was measured on."""
    info = Path("/proc/cpuinfo").read_text()
    name = next((line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")), "?")
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


@click.command(help=__doc__.split("\n")[0])
@click.option("--models", default="llama-1b", show_default=True, help=f"Of {', '.join(SHAPES)}.")
@click.option("--dtypes", default="float32,bfloat16,int8,int4", show_default=True, help="Weight formats.")
@click.option("--kernels", default="native", show_default=True, help="native, stock or both.")
@click.option("--threads", default=len(os.sched_getaffinity(0)), show_default=True, help="CPU threads.")
@click.option("--rounds", default=3, show_default=True, help="Repetitions, of which medians are taken.")
@click.option("--work", type=Path, default=Path(tempfile.gettempdir()) / "inference-bench", show_default=True)
@click.option("--format", "form", type=click.Choice(["markdown", "csv", "jsonl"]), default="markdown")
@click.option("--save", type=Path, help="Write the table to this file as well.")
@click.option("--startup/--no-startup", "with_startup", default=True, help="Measure the start-up of the demo.")
def main(
    models: str,
    dtypes: str,
    kernels: str,
    threads: int,
    rounds: int,
    work: Path,
    form: str,
    save: Path | None,
    with_startup: bool,
) -> None:
    names = [name for name in models.split(",") if name]
    for name in names:
        make_checkpoint(work, name)
    sets = ("native", "stock") if kernels == "both" else (kernels,)
    cases = [(name, dtype, which) for name in names for dtype in dtypes.split(",") for which in sets]
    measured: dict[tuple[str, str, str], list[dict[str, float]]] = {case: [] for case in cases}
    for round_ in range(rounds):
        for case in cases:
            click.echo(f"round {round_ + 1}: {' '.join(case)}", err=True)
            measured[case].append(worker(work, *case, threads))
    rows: list[dict[str, object]] = [
        {"model": name, "weights": dtype, "kernels": which, **medians(measured[name, dtype, which])}
        for name, dtype, which in cases
    ]
    text = render(rows, form)
    if save:
        save.write_text(text + "\n", encoding="utf-8")
    click.echo(text)
    found = [row["bandwidth_gb_s"] for row in rows if "bandwidth_gb_s" in row]
    if found:
        click.echo(f"\n{machine()}, {threads} threads; read bandwidth {max(found):.0f} GB/s; {rounds} rounds", err=True)
    if with_startup:
        for name, seconds in startup(rounds).items():
            click.echo(f"{name}: {seconds:.2f} s", err=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        path, dtype, which, count = sys.argv[2:]
        print(json.dumps(measure(Path(path), dtype, which, int(count))))
    else:
        main()
