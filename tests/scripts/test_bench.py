"""scripts/bench.py: what it counts, how it is written down, and what it says about what is not there."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarking import gguf_file, machine, process, rounds, table, workload
from benchmarking.programs import Call, Case, installed_peers, missing_packages
from benchmarking.shapes import Shape, make_checkpoint
from benchmarking.workload import Lengths, Run

ROOT = Path(__file__).parents[2]
TINY = Shape("LlamaForCausalLM", 2, 64, 4, 2, 96, 160, False)


def bench(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts/bench.py"), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("bench") / "tiny", TINY)


@pytest.fixture
def bare_python(tmp_path: Path) -> str:
    """An interpreter without any packages."""
    path = tmp_path / "python"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.slow
def test_a_tiny_model_runs_all_steps(checkpoint, tmp_path, bare_python):
    saved, picture = tmp_path / "bench.jsonl", tmp_path / "bench.png"
    done = bench(
        *("--models", checkpoint, "--dtypes", "int4", "--rounds", 1, "--work", tmp_path / "work", "--no-startup"),
        *("--peers", "llamacpp", "--peer-python", f"llamacpp={bare_python}"),
        *("--format", "jsonl", "--save", saved, "--plot", picture),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == saved.read_text()
    (row,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert (row["model"], row["program"], row["weights"], row["rounds"]) == ("tiny", "ours", "int4", 1)
    for name in set(table.COLUMNS) - {"agree", "over_mb", "spread"}:
        assert row[name] > 0, name
    assert row["peak_mb"] == pytest.approx(row["weights_mb"] + row["kv_mb"] + row["over_mb"])
    # Two key and two value heads of 16 in two layers, and at least as many positions as the largest batch has.
    positions = row["kv_mb"] * 1e6 / (2 * 2 * 2 * 16 * 4)
    assert 16 * (128 + 32) <= positions <= 16 * (128 + 32) + 1024
    # The matrices, a little over half a byte for each weight of int4 and one for those of int8, and the norms.
    assert 0.04 < row["weights_mb"] < 0.2
    assert row["token_mb"] < row["weights_mb"]
    assert [len(ids) for ids in row["out_ids"]] == [32] * (1 + 4 + 16)
    lines = done.stderr.splitlines()
    assert [
        line for line in lines if "llama.cpp is not measured" in line and "llama_cpp" in line and bare_python in line
    ]
    if find_spec("matplotlib"):
        assert picture.read_bytes().startswith(b"\x89PNG")
    else:
        assert [line for line in lines if "matplotlib" in line] and not picture.exists()
    assert not list((tmp_path / "work").rglob("*.part"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--models", "llama-2b"], "'llama-2b' is none of llama-1b"),
        (["--dtypes", "int8,int3"], "'int3' is none of float32"),
        (["--peers", "vllm"], "'vllm' is none of llamacpp, hf"),
        (["--peer-python", "hf=/nowhere/python"], "'hf=/nowhere/python': give NAME=PATH"),
        (["--save", "/nowhere/bench.md"], "/nowhere is no directory"),
        (["--rounds", "0"], "--rounds"),
    ],
)
def test_a_mistake_is_named_before_anything_is_measured(arguments, expected):
    done = bench(*arguments)
    assert done.returncode == 2
    assert expected in done.stderr.splitlines()[-1]
    assert done.stdout == ""


@pytest.mark.slow
def test_the_harness_gets_the_same_answers_from_any_number_of_slots(checkpoint, tmp_path):
    numbers = np.random.default_rng(0)
    lengths = [(5, 3), (40, 9), (17, 1), (8, 40)]
    requests = [
        {"id": row, "prompt_ids": numbers.integers(3, TINY.vocabulary, prompt).tolist(), "max_new_tokens": new}
        for row, (prompt, new) in enumerate(lengths)
    ]
    prompts = tmp_path / "batch.json"
    prompts.write_text(json.dumps({"task": "batch", "requests": requests}))
    answers = []
    for task, slots in (("batch", 1), ("batch", 4), ("single", 1)):
        done = bench(
            *("--harness", "--model", checkpoint, "--prompts", prompts, "--task", task, "--dtype", "fp32"),
            *("--threads", 2, "--slots", slots, "--reps", 2),
        )
        assert done.returncode == 0, done.stderr
        answers.append(json.loads(done.stdout.splitlines()[-1]))
    alone, together, single = answers
    assert [len(ids) for ids in alone["out_ids"]] == [3, 9, 1, 32]
    assert together["out_ids"] == alone["out_ids"]
    assert single["out_ids"] == alone["out_ids"][:1]
    assert together["batch_tok_s"] > 0 and together["decode_tok_s"] is None
    assert single["decode_tok_s"] > 0 and single["batch_tok_s"] is None
    assert single["prefill_tok_s"] == pytest.approx(5 / single["ttft_s"])


def test_the_harness_explains_how_to_convert(checkpoint, tmp_path):
    prompts = tmp_path / "single.json"
    prompts.write_text('{"requests": [{"prompt_ids": [3], "max_new_tokens": 1}]}')
    arguments = ["--model", checkpoint, "--prompts", prompts, "--task", "single", "--dtype", "int8"]
    done = bench("--harness", *arguments, "--converted", tmp_path)
    assert done.returncode == 1
    assert f"{tmp_path / 'tiny-int8'} is not there: write it with run_inference.py --run_mode convert" in done.stderr


class Toy:
    """Takes a second for a prompt and an eighth for every step after it."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, int]] = []
        self.prompts: list[tuple[int, ...]] = []

    def generate(self, rows: list[list[int]], new: int) -> Run:
        self.seen.append((len(rows), len(rows[0]), new))
        self.prompts += map(tuple, rows)
        return Run.of_steps(10.0, [11 + step / 8 for step in range(new)], [[7] * new for _ in rows])


def test_figures_of_a_workload():
    toy = Toy()
    figures = workload.measure(toy, 1000, Lengths())
    assert figures["prefill_tok_s"] == 512
    assert figures["ttft_ms"] == 1000
    assert (figures["decode_1_tok_s"], figures["decode_4_tok_s"], figures["decode_16_tok_s"]) == (8, 32, 128)
    assert (16, 128, 32) in toy.seen and (1, 128, 128) in toy.seen
    # A cache of common beginnings finds nothing.
    assert len({prompt[:8] for prompt in toy.prompts}) == len(toy.prompts)
    assert all(3 <= token < 1000 for prompt in toy.prompts for token in prompt)
    again = Toy()
    workload.measure(again, 1000, Lengths())
    assert again.prompts == toy.prompts


def test_a_parents_memory_does_not_count_as_ours():
    held = np.ones(50_000_000)
    program = "from benchmarking import process; print(process.peak_memory(), process.age())"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT / "scripts"
    )
    peak, age = map(float, done.stdout.split())
    assert 1e6 < peak < held.nbytes / 2
    assert 0 <= age < 60
    assert process.peak_memory() > held.nbytes


def test_a_checkpoint_is_recreated_only_for_another_shape(tmp_path):
    weights = make_checkpoint(tmp_path, TINY) / "model.safetensors"
    first = weights.stat().st_mtime_ns
    assert make_checkpoint(tmp_path, TINY) and weights.stat().st_mtime_ns == first
    make_checkpoint(tmp_path, Shape("Qwen2ForCausalLM", 2, 64, 4, 2, 96, 160, True))
    names = gguf_file.Tensors(weights).header
    assert "model.layers.1.self_attn.k_proj.bias" in names and "lm_head.weight" not in names


def figures_of(decode: float, **others: object) -> rounds.Figures:
    sizes = {"weight_bytes": 5e6, "token_bytes": 4e6, "kv_bytes": 1e6, "peak_mb": 10.0}
    return {"decode_1_tok_s": decode, "version": "toy 1", **sizes, **others}


def test_medians_and_spread():
    case = Case("tiny", "ours", "int8", ())
    row = rounds.row(case, 2, [figures_of(10.0), figures_of(13.0), figures_of(11.0)])
    assert (row["decode_1_tok_s"], row["rounds"], row["threads"], row["version"]) == (11.0, 3, 2, "toy 1")
    assert row["spread"] == pytest.approx(3 / 11)
    assert (row["weights_mb"], row["kv_mb"], row["over_mb"]) == (5, 1, 4)


def test_agreement_is_with_transformers_or_else_with_ours():
    def row(program: str, weights: str, *answers: list[int], model: str = "a") -> rounds.Figures:
        return {"model": model, "program": program, "weights": weights, "out_ids": list(answers)}

    rows = [
        row("ours", "float32", [1, 2, 3, 4], [5, 6, 7, 8]),
        row("transformers", "float32", [1, 2, 3, 4], [5, 0, 7, 8]),
        row("ours", "float32", [1, 1], model="b"),
        row("ours", "int4", [1, 2], model="b"),
        {"model": "b", "program": "llama.cpp", "weights": "f16"},
    ]
    rounds.compare(rows)
    assert [row.get("agree") for row in rows] == [5 / 8, 1, 1, 0.5, None]


def test_a_failing_case_is_reported_and_skipped(tmp_path):
    said: list[str] = []
    job = {"action": "measure", "model": str(tmp_path), "dtype": "int8", "kernels": "native", "threads": 1}
    case = Case("none", "ours", "int8", (Call(sys.executable, "benchmarking.ours", job),))
    assert rounds.run([case], 2, 1, None, said.append) == {case: []}
    assert [line for line in said if "none ours int8 fails and is left out:" in line and str(tmp_path) in line]
    # Not tried again.
    assert len(said) == 2
    assert table.render([rounds.row(case, 1, [])], [], "markdown").splitlines()[-1] == "| none | ours | int8 | 1 |"


def test_peers_that_are_not_installed(bare_python):
    assert missing_packages(sys.executable, ("numpy", "no_such_package")) == ["no_such_package"]
    assert missing_packages("/bin/false", ("numpy",)) == ["numpy"]
    said: list[str] = []
    assert installed_peers(["llamacpp", "hf"], {"llamacpp": bare_python, "hf": bare_python}, said.append) == []
    assert said == [
        f"llama.cpp is not measured: {bare_python} has no llama_cpp and no gguf; install llama-cpp-python and gguf "
        "there, or give --peer-python llamacpp=PATH",
        f"transformers is not measured: {bare_python} has no transformers and no torch; install transformers and torch "
        "there, or give --peer-python hf=PATH",
    ]


ROWS = [
    {"model": "a", "program": "ours", "weights": "int4", "threads": 2, "decode_1_tok_s": 1234.5, "out_ids": [[1]]},
    {"model": "a", "program": "llama.cpp", "weights": "q4_0", "threads": 2, "decode_1_tok_s": 9.876, "ttft_ms": 0.5},
]
STARTUP = [{"startup": "--help", "seconds": 0.25}]


def test_markdown():
    assert table.render(ROWS, STARTUP, "markdown").splitlines() == [
        "| model | program | weights | threads | TTFT ms | decode tok/s |",
        "| --- | --- | --- | --- | --- | --- |",
        "| a | ours | int4 | 2 | - | 1,234 |",
        "| a | llama.cpp | q4_0 | 2 | 0.50 | 9.88 |",
        "",
        "| start-up of the demo model | s |",
        "| --- | --- |",
        "| --help | 0.25 |",
    ]
    assert table.render([], STARTUP, "markdown").startswith("| start-up")


def test_csv_and_json_lines():
    read = list(csv.DictReader(io.StringIO(table.render(ROWS, STARTUP, "csv"))))
    assert [row["decode_1_tok_s"] for row in read] == ["1234.5", "9.876", ""]
    assert read[2]["startup"] == "--help" and "out_ids" not in read[0]
    assert [json.loads(line) for line in table.render(ROWS, STARTUP, "jsonl").splitlines()] == [*ROWS, *STARTUP]


def test_the_plot(tmp_path):
    pytest.importorskip("matplotlib")
    from benchmarking import plot

    rows = [{**ROWS[0], "roof": 0.5}, ROWS[1], {"model": "b", "program": "ours", "weights": "int8", "threads": 2}]
    plot.draw(rows, tmp_path / "bench.svg")
    text = (tmp_path / "bench.svg").read_text()
    assert "<!-- a: decode, batch 1, tokens/s -->" in text and "<!-- llama.cpp q4_0 -->" in text


def test_the_machine_is_measured_in_a_separate_process(tmp_path):
    program = machine.build(tmp_path)
    built = program.stat().st_mtime_ns
    limits = machine.measure(program, 2, read_bytes=64 << 20, passes=2)
    assert 1e8 < limits.bandwidth < 1e13 and 1e8 < limits.flops < 1e14
    assert machine.build(tmp_path).stat().st_mtime_ns == built


def test_a_missing_compiler_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "COMPILERS", ("no-such-compiler",))
    with pytest.raises(machine.MachineError, match="there is no C\\+\\+ compiler"):
        machine.build(tmp_path)
    monkeypatch.setattr(machine, "COMPILERS", ("false",))
    with pytest.raises(machine.MachineError, match="fails"):
        machine.build(tmp_path)
    assert list(tmp_path.iterdir()) == []


@given(heads=st.integers(1, 4), pairs=st.integers(1, 8), angle=st.floats(-3, 3), seed=st.integers(0, 9))
def test_rotating_neighbors_of_reordered_rows_is_rotating_halves(heads, pairs, angle, seed):
    size = 2 * pairs
    values = np.random.default_rng(seed).standard_normal((heads * size, 1))
    cos, sin = np.cos(angle * np.arange(pairs)), np.sin(angle * np.arange(pairs))
    low, high = np.moveaxis(values.reshape(heads, 2, pairs), 1, 0)
    halves = np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=1).reshape(-1, 1)
    even, odd = np.moveaxis(gguf_file.pairs_from_halves(values, heads).reshape(heads, pairs, 2), 2, 0)
    neighbors = np.stack([even * cos - odd * sin, odd * cos + even * sin], axis=2).reshape(-1, 1)
    np.testing.assert_allclose(neighbors, gguf_file.pairs_from_halves(halves, heads))


def test_names_in_gguf():
    assert gguf_file.gguf_name("model.layers.21.mlp.gate_proj.weight") == "blk.21.ffn_gate.weight"
    assert gguf_file.gguf_name("model.layers.0.self_attn.q_proj.bias") == "blk.0.attn_q.bias"
    assert gguf_file.gguf_name("model.embed_tokens.weight") == "token_embd.weight"
    assert gguf_file.gguf_name("lm_head.weight") == "output.weight"


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Qwen2ForCausalLM"])
def test_a_gguf_file_holds_the_checkpoint(tmp_path, architecture, dtype):
    gguf = pytest.importorskip("gguf")
    shape = Shape(architecture, 2, 64, 4, 2, 96, 160, architecture.startswith("Qwen2"))
    source = make_checkpoint(tmp_path / "model", shape)
    gguf_file.write(source, tmp_path / "model.gguf", dtype)
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    stored = {tensor.name: tensor.data for tensor in reader.tensors}
    tensors = gguf_file.Tensors(source / "model.safetensors")
    assert len(stored) == len(tensors.header)
    for name in tensors.header:
        values, found = tensors[name], stored[gguf_file.gguf_name(name)]
        heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
        if heads and architecture == "LlamaForCausalLM":
            values = gguf_file.pairs_from_halves(values, heads)
        assert found.dtype == (np.float16 if dtype == "f16" and values.ndim == 2 else np.float32)
        np.testing.assert_array_equal(found, values.astype(found.dtype))
    own = shape.config()["model_type"]
    assert reader.fields[f"{own}.attention.head_count_kv"].parts[-1][0] == 2
    assert reader.fields[f"{own}.vocab_size"].parts[-1][0] == 160
    assert not list(tmp_path.glob("*.part"))
