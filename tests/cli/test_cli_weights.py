"""Weight formats, kernels, evaluate and convert, as a user meets them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from inference.config.presets import find_preset
from inference.kernels.build import SET_SOURCES, SOURCES_FOR_ALL

HELD_OUT = (Path(__file__).resolve().parents[1] / "demo" / "heldout.txt").read_text(encoding="utf-8")
QUESTIONS = ("--predict_data", "12 + 7 =", "Translate to German: the big house", "2 + 3 =")


def measured(cli, *arguments: object) -> dict:
    # A part of the file is enough to tell formats apart, and stock operators take long.
    texts = cli.write("texts.txt", "".join(HELD_OUT.splitlines(keepends=True)[:50]))
    words = ("--run_mode", "evaluate", "--predict_data", texts, "--output_format", "json", *arguments)
    return json.loads(cli.demo(*words).answered().out)


def perplexity(cli, *arguments: object) -> float:
    return measured(cli, *arguments)["perplexity"]


@pytest.fixture(scope="module")
def exact(shared_cli) -> float:
    return perplexity(shared_cli, "--engine.weight_dtype", "float32")


@pytest.mark.parametrize(("dtype", "allowed"), [("float16", 1e-4), ("bfloat16", 1e-3), ("int8", 0.01), ("int4", 0.05)])
def test_a_narrower_format_costs_little(shared_cli, exact, dtype, allowed):
    got = perplexity(shared_cli, "--engine.weight_dtype", dtype)
    assert abs(got / exact - 1) < allowed


def test_narrow_weights_are_compared_token_by_token(shared_cli, exact):
    found = measured(shared_cli, "--engine.weight_dtype", "int4", "--compare_with", "demo")
    assert found["perplexity"] != exact == pytest.approx(found["baseline_perplexity"], rel=1e-6)
    assert 0 < found["kl_divergence"] < 0.01 < found["kl_divergence_max"] and 0.9 < found["same_argmax"] < 1


def test_a_baseline_with_larger_blocks_has_room_for_as_many_texts(cli):
    """Each text takes a block of its own."""
    cli.write("large.yaml", json.dumps({"base_config": str(find_preset("demo")), "engine": {"block_size": 128}}))
    texts = cli.write("short.txt", "cat\n" * 200)
    words = ("--run_mode", "evaluate", "--predict_data", texts, "--output_format", "json", "--compare_with")
    found = json.loads(cli.demo(*words, "large.yaml").answered().out)
    assert found["documents"] == 200 and found["same_argmax"] == 1


BASELINES = [
    (("--compare_with", "result.json"), "--compare_with: result.json is the result of an evaluation, and texts are"),
    (("--compare_with", "gemma2"), "gemma2"),
    (
        ("--compare_with", "wide.yaml"),
        "--compare_with: wide.yaml has 1,000 tokens and demo 1,280, so their",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), BASELINES, ids=lambda value: value[1])
def test_an_unsuitable_baseline_is_rejected_before_a_model_loads(cli, arguments, message):
    wide = {"base_config": str(find_preset("demo")), "model": {"model_config": {"vocab_size": 1000}}}
    cli.write("wide.yaml", json.dumps(wide | {"engine": {"random_weights": True}}))
    assert message in cli.demo("--run_mode", "evaluate", "--predict_data", "A text", *arguments).error()


def test_an_int8_cache_costs_a_thousandth_at_most(shared_cli, exact):
    got = perplexity(shared_cli, "--engine.weight_dtype", "float32", "--engine.kv_cache_dtype", "int8")
    assert got != exact and abs(got / exact - 1) < 1e-3


def test_stock_operators_give_the_same_perplexity(shared_cli, exact):
    assert perplexity(shared_cli, "--engine.kernels", "stock") == pytest.approx(exact, rel=1e-4)


def test_convert_then_load(cli, exact):
    convert = ("--run_mode", "convert", "--engine.weight_dtype", "int8", "--output_dir", "made")
    names = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.model", "tokenizer_config.json")
    files = ("made", "made/demo-int8", *(f"made/demo-int8/{name}" for name in names))
    assert cli.demo(*convert, writes=files).answered().out == "made/demo-int8\n"
    for flags in ((), ("--check",)):
        assert cli.demo(*convert, *flags).error() == (
            "made/demo-int8 exists; give another --output_dir, or --force to replace it"
        )
    cli.write("taken", "a file")
    assert cli.demo(*convert[:-1], "taken/made", "--check").error() == (
        f"taken/made/demo-int8 cannot be created: {cli.directory / 'taken'} is a file; give another --output_dir"
    )
    cli.demo(*convert, "--force").answered()
    packed = ("--load_checkpoint", "made/demo-int8")
    assert cli.demo(*packed, *QUESTIONS).answered().out == " 19\n das große Haus\n 5\n"
    assert perplexity(cli, *packed) == perplexity(cli, "--engine.weight_dtype", "int8")
    assert perplexity(cli, *packed, "--engine.kernels", "stock") == pytest.approx(exact, rel=0.01)
    assert "are packed as int8" in cli.demo(*packed, *QUESTIONS, "--engine.weight_dtype", "int4").error()


def test_without_a_compiler_stock_operators_answer(cli):
    cli.environment |= {"CXX": "no-such-compiler"}
    result = cli.demo(*QUESTIONS).answered()
    assert result.out == " 19\n das große Haus\n 5\n"
    line = "no C++ compiler (no-such-compiler) is on the PATH; install g++: stock operators are used, which are slower"
    assert result.err.splitlines()[0] == line
    assert cli.demo(*QUESTIONS, "--engine.kernels", "native").error(code=1).startswith("no C++ compiler")


def test_a_compiler_that_fails(cli):
    broken = cli.write("broken-c++", "#!/bin/sh\n[ $1 = --version ] && exit 0\necho 'x.cpp:1: error: no' >&2\nexit 1\n")
    broken.chmod(0o755)
    cli.environment |= {"CXX": str(broken), "INFERENCE_KERNEL_CACHE": str(cli.directory.parent / "kernel-cache")}
    result = cli.demo(*QUESTIONS)
    assert (result.code, result.out) == (0, " 19\n das große Haus\n 5\n")
    assert "could not build the kernels: x.cpp:1: error: no: stock operators are used" in result.err


@pytest.mark.slow
def test_two_processes_build_once(tmp_path):
    """Both get the one library, and nothing half-made is left beside it."""
    # What is built is not run, so the compiler need not optimize, which takes it ten times as long.
    compiler, calls = tmp_path / "c++", tmp_path / "calls"
    compiler.write_text(f'#!/bin/sh\n[ $1 = --version ] || echo >> {calls}\nexec g++ "$@" -O0\n')
    compiler.chmod(0o755)
    code = "from inference.kernels.build import main; main()"
    root = Path(__file__).resolve().parents[2]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "INFERENCE_KERNEL_CACHE": str(tmp_path / "cache")}
    environment["CXX"] = str(compiler)
    runs = [
        subprocess.Popen([sys.executable, "-c", code], cwd=root, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    paths = {run.communicate(timeout=200)[0].strip() for run in runs}
    assert len(paths) == 1
    library = Path(paths.pop())
    made = {path.name for path in library.parent.iterdir()}
    assert made == {"build.lock", library.name, library.with_suffix(".sha256").name}
    # Each file is compiled once, for this processor's instruction set, and all are linked once.
    assert len(calls.read_text()) == len(SET_SOURCES) + len(SOURCES_FOR_ALL) + 1


def test_float16_cache(cli):
    result = cli.demo(*QUESTIONS, "--engine.kv_cache_dtype", "float16").answered()
    assert result.out == " 19\n das große Haus\n 5\n"
    stock = cli.demo(*QUESTIONS, "--engine.kv_cache_dtype", "float16", "--engine.kernels", "stock").answered()
    assert stock.err.startswith("engine.kv_cache_dtype float16 needs the native kernels: the cache is in float32\n")


def test_compile_cache(cli):
    """A stored graph would hold the addresses of the process that stored it."""
    cli.environment |= {"MS_COMPILER_CACHE_ENABLE": "1", "MS_COMPILER_CACHE_PATH": str(cli.directory.parent / "graphs")}
    for _ in range(2):
        result = cli.demo(*QUESTIONS).answered()
        assert result.out == " 19\n das große Haus\n 5\n"
        assert result.err.startswith("MindSpore's compile cache is not used: ")
