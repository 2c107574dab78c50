"""GGUF files, written by the package gguf: sizes, weights and tokenizer are those of the model that was written."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inference.api.auto import AutoTokenizer
from inference.checkpoint import gguf_tensors
from inference.checkpoint.tensor import Segment, StoredTensor
from inference.config import load_config
from inference.errors import CheckpointError, ConfigError, InferenceError, TokenizerError
from inference.generation.build import weight_format_of
from inference.kernels.formats import Format, unpack
from inference.models.source import ModelSource, resolve
from inference.models.weights import loading, weight_formats
from inference.models.weights.parameters import parameter_shapes
from inference.modes.convert import convert
from inference.modes.model_comments import model_as_comments
from inference.tokenizer import load_tokenizer
from inference.tokenizer.gguf_tokenizer import write_gguf_tokenizer

gguf = pytest.importorskip("gguf", reason="the extra gguf is not installed")

from gguf_files import fields_of, their_name, write_gguf  # noqa: E402  (needs gguf)

ROOT = Path(__file__).parents[2]
GOLDENS = ROOT / "tests" / "goldens"
DEMO = ROOT / "inference" / "demo"


@dataclass(frozen=True, kw_only=True)
class ArrayTensor(StoredTensor):
    """A tensor whose bytes are an array's."""

    array: np.ndarray

    def rows(self, begin: int, end: int) -> ArrayTensor:
        return replace(self, shape=(end - begin, self.shape[1]), array=self.array[begin:end])

    def read_bytes_into(self, out: np.ndarray) -> None:
        out[:] = self.array.reshape(out.shape)


def source_of(path: Path, **settings: Any) -> ModelSource:
    return resolve(load_config({"load_checkpoint": str(path), **settings}))


def parameters(source: ModelSource, weight_format: Format, packed: bool = False) -> dict[str, np.ndarray]:
    """The network's parameters as float32, from packed memory; or that memory."""
    formats, arrays, destinations = weight_formats.formats_of(source.model, weight_format), {}, {}
    shapes = parameter_shapes(source.model)
    for name, shape in shapes.items():
        dtype, layout = weight_formats.memory_layout(shape, formats[name])
        arrays[name] = np.zeros(layout, dtype)
        memory = None if len(shape) == 1 else formats[name]
        destinations[name] = loading.Destination(arrays[name], memory, formats[name])
    loading.load(source.pairs() or [], destinations)
    return {
        name: array if packed or len(shapes[name]) == 1 else unpack(array, formats[name], *shapes[name])
        for name, array in arrays.items()
    }


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("golden", ["llama2_gqa", "mistral_window", "qwen2", "qwen2_tied", "qwen3"])
def test_it_is_the_model_that_was_written(golden: str, kind: str, tmp_path) -> None:
    write_gguf(GOLDENS / golden, tmp_path / "model.gguf", kind)
    found, expected = source_of(tmp_path / "model.gguf"), source_of(GOLDENS / golden)
    assert replace(found.model, storage=expected.model.storage) == expected.model
    assert weight_format_of(found, found.pairs()).value == {"F32": "float32", "F16": "float16"}.get(kind, "bfloat16")
    theirs, ours = parameters(found, Format.FLOAT32), parameters(expected, Format.FLOAT32)
    assert theirs.keys() == ours.keys()
    tolerance = {"F32": 0, "F16": 2**-10, "BF16": 2**-7}[kind]
    for name, array in theirs.items():
        np.testing.assert_allclose(array, ours[name], rtol=tolerance, atol=tolerance * 1e-4, err_msg=name)


# What a file does not say of a golden, because the models of that name all have the same.
UNSAID = {
    "gemma2": {"query_pre_attn_scalar": 16},
    "gemma3": {"query_pre_attn_scalar": 16, "layer_types": None, "sliding_window_pattern": 6},
    "internlm2": {"rope_scaling": None},
}
FAMILIES = [
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "gemma2",
    "gemma3",
    "phi3",
    "phi4_mini",
    "gpt2",
    "internlm2",
    "chatglm3",
    "glm",
    "glm4",
    "glm4_moe",
    "baichuan2_7b",
]


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
@pytest.mark.parametrize("golden", FAMILIES)
def test_other_families_are_the_model_that_was_written(golden: str, kind: str, tmp_path) -> None:
    """Sizes, and weights however the converter permutes, stacks, transposes or adds to them."""
    config = GOLDENS / golden
    # Of too few columns for a block.
    short = dict.fromkeys(("down_proj.weight", "w2.weight", "4h_to_h.weight"), "F32")
    write_gguf(config, tmp_path / "model.gguf", {**short, "": kind})
    found = source_of(tmp_path / "model.gguf")
    expected = source_of(config, model={"model_config": UNSAID.get(golden, {})})
    # A magnitude of cosine and sine is rounded to float32 in a file.
    assert found.model.rope.attention_factor == pytest.approx(expected.model.rope.attention_factor, rel=1e-6)
    rope = replace(found.model.rope, attention_factor=expected.model.rope.attention_factor)
    same = {name: getattr(expected.model, name) for name in ("storage", "architecture")}
    assert replace(found.model, rope=rope, **same) == expected.model
    theirs, ours = parameters(found, Format.FLOAT32), parameters(expected, Format.FLOAT32)
    assert theirs.keys() == ours.keys()
    if kind == "F32":
        for name, array in theirs.items():
            # Gemma's converter adds 1 to norms, and so rounds them.
            np.testing.assert_allclose(array, ours[name], rtol=0, atol=1e-7 if "norm" in name else 0, err_msg=name)


Q4_K_M = {"embed_tokens.weight": "Q8_0", "v_proj.weight": "Q8_0", "down_proj.weight": "Q5_0", "": "Q4_1"}


@pytest.mark.parametrize(
    ("kinds", "chosen", "said"),
    [
        ("Q8_0", "int8", r"GGUF Q8_0\): taken over as int8 without"),
        ("Q4_0", "int4", r"GGUF Q4_0\): kept as int4 100%: 4.5 bits a weight, without another rounding"),
        ({"embed_tokens.weight": "Q8_0", "": "Q4_0"}, "int4", r"GGUF Q4_0, GGUF Q8_0\): taken over as int4 without"),
        ({"up_proj.weight": "Q5_0", "": "Q8_0"}, "int8", r"taken over as int8 without"),
        ("Q4_1", "int4_min", r"GGUF Q4_1\): kept as int4_min 100%: 5.0 bits a weight, without another rounding"),
        # Matrices that are fused have one format, which holds all of them.
        ({"up_proj.weight": "Q5_1", "": "Q4_1"}, "int4_min+int8_min", r"Q5_1\): kept as int4_min 57%, int8_min 43%"),
        (Q4_K_M, "int4_min+int8+int8_min", r"Q8_0\): kept as int4_min 5\d%, int8 3\d%, int8_min \d+%: 6.\d bits"),
    ],
    ids=["q8_0", "q4_0", "q8_0 embedding", "q5_0", "q4_1", "q5_1", "q4_k_m"],
)
def test_blocks_are_kept_unchanged(kinds: Any, chosen: str, said: str, tmp_path) -> None:
    values = write_gguf(DEMO, tmp_path / "model.gguf", kinds)
    source = source_of(tmp_path / "model.gguf")
    weight_format = weight_format_of(source, source.pairs())
    assert weight_format.value == chosen
    line = weight_formats.describe_quantized(source.pairs(), weight_format) or ""
    assert re.search(said, line) and "rounded" not in line.replace("another rounding", "")
    found, dequantized = parameters(source, weight_format), parameters(source, Format.FLOAT32)
    formats = weight_formats.formats_of(source.model, weight_format)
    for _, place in source_of(DEMO).pairs():
        rows = slice(place.first_row, place.first_row + place.shape[0])
        expected = place.arranged(values[place.name]) if place.is_arranged else values[place.name]
        np.testing.assert_array_equal(dequantized[place.parameter][rows], expected, err_msg=place.name)
        # The middle of a group's range takes the place of its minimum, and is rounded to float16.
        atol = np.abs(expected).max() * 2.0**-11 if formats[place.parameter].has_minimum else 0
        np.testing.assert_allclose(found[place.parameter][rows], expected, rtol=0, atol=atol, err_msg=place.name)


def test_print_config_names_the_formats_of_a_quantized_checkpoint(tmp_path: Path) -> None:
    write_gguf(DEMO, tmp_path / "model.gguf", {"down_proj.weight": "Q5_0", "": "Q4_1"})
    comments = model_as_comments(load_config({"pretrained_model_dir": str(tmp_path / "model.gguf")}))
    assert re.match(r"# Weights: .* \(GGUF Q4_1, GGUF Q5_0\): kept as int4_min 78%, int8 22%: 5.8 bits", comments[0])


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K"])
def test_block_codes_equal_the_packages_dequantization(kind: str) -> None:
    """Blocks of random bits: every bit has its place."""
    random, size = np.random.default_rng(5), gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    blocks = random.integers(0, 256, (6, 3, size[1])).astype(np.uint8)
    numbers = 2 if kind in ("Q4_1", "Q5_1", "Q4_K", "Q5_K") else 1
    blocks[:, :, : 2 * numbers] = random.uniform(-1, 1, (6, 3, numbers)).astype(np.float16).view(np.uint8)
    raw = blocks.reshape(6, -1)
    segments = (Segment(Path("unused"), 0, 0),)
    data = ArrayTensor(name="weight", dtype="uint8", shape=raw.shape, segments=segments, array=raw)
    found = gguf_tensors.blocks_of(data, kind, 3 * size[0]).codes(2, 6)
    expected = gguf.dequantize(raw, gguf.GGMLQuantizationType[kind])[2:]
    np.testing.assert_allclose(found.values(), expected, rtol=0, atol=2.0**-22 * np.abs(expected).max())
    form = gguf_tensors.FORMS[kind]
    assert found.codes.min() >= (-8 if form.is_four_bits else -128)
    assert found.codes.max() <= (7 if form.is_four_bits else 127)


def test_a_file_gives_the_models_answers(tmp_path) -> None:
    """The command line, with sizes, weights and tokenizer from the file alone."""
    original = load_tokenizer(DEMO)
    write_gguf(DEMO, tmp_path / "demo.gguf", "F16", fields_of(original, DEMO))
    answers = []
    base = str(ROOT / "configs" / "base" / "predict_base.yaml")
    for model in (["demo"], [base, "--pretrained_model_dir", "demo.gguf"]):
        command = [sys.executable, ROOT / "run_inference.py", "--predict_data", "One day a girl", "--config", *model]
        settings = ["--do_sample", "False", "--max_new_tokens", "24", "--engine.weight_dtype", "float32"]
        done = subprocess.run(
            [*command, *settings], capture_output=True, text=True, cwd=tmp_path, env=dict(os.environ, PYTHONPATH=ROOT)
        )
        assert done.returncode == 0, done.stderr
        answers.append(done.stdout)
    assert answers[0] == answers[1] and len(answers[0]) > 40


@pytest.mark.parametrize("kind", ["Q8_0", "F16", Q4_K_M], ids=["q8_0", "f16", "q4_k_m"])
def test_a_file_is_converted_with_its_tokenizer(kind: Any, tmp_path, capfd) -> None:
    tokenizer = load_tokenizer(DEMO)
    write_gguf(DEMO, tmp_path / "demo.gguf", kind, fields_of(tokenizer, DEMO))
    settings = {"load_checkpoint": str(tmp_path / "demo.gguf"), "run_mode": "convert", "output_dir": str(tmp_path)}
    file, converted = source_of(tmp_path / "demo.gguf"), source_of(convert(load_config(settings)))
    assert converted.packed == weight_format_of(file, file.pairs())
    # Rows lie in the order of the kernels now, as in what is made of the family's own checkpoints.
    assert converted.model.storage == source_of(DEMO).model.storage
    found = {place.name: tensor for tensor, place in converted.pairs()}
    for name, array in parameters(file, converted.packed, packed=True).items():
        stored = np.empty(found[name].shape, array.dtype)
        found[name].read_bytes_into(stored.reshape(-1).view(np.uint8))
        np.testing.assert_array_equal(stored, array, err_msg=name)
    assert converted.tokenizer().encode("One day a girl") == tokenizer.encode("One day a girl")
    assert converted.generation.eos_token_id == file.generation.eos_token_id
    capfd.readouterr()
    write_gguf(DEMO, tmp_path / "bare.gguf", kind)
    bare = convert(load_config({**settings, "load_checkpoint": str(tmp_path / "bare.gguf")}))
    assert "no tokenizer is written" in capfd.readouterr().err and not list(bare.glob("tokenizer*"))


@pytest.mark.parametrize("case", ["llama_patterns", "gpt2", "phi3"])
def test_an_adapter_is_for_rows_as_its_family_publishes_them(case: str, tmp_path) -> None:
    """A file of `llama` has rows of q and k in another order."""
    directory = GOLDENS / "lora" / case
    base = GOLDENS / str(np.load(directory / "golden.npz")["base"])
    write_gguf(base, tmp_path / "model.gguf", "F32")
    chosen, merged = {"adapters": {case: str(directory)}}, {"engine": {"merge_adapter": case}}
    found, expected = (
        parameters(source_of(path, **chosen, **merged), Format.FLOAT32) for path in (tmp_path / "model.gguf", base)
    )
    for name, array in found.items():
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=1e-6, err_msg=name)
    found, expected = (
        source.adapters.additions(source.shard())
        for source in (source_of(path, **chosen) for path in (tmp_path / "model.gguf", base))
    )
    assert found.keys() == expected.keys()
    for name, additions in found.items():
        for ours, theirs in zip(additions, expected[name], strict=True):
            assert ours.first_row == theirs.first_row
            np.testing.assert_array_equal(ours.up, theirs.up, err_msg=name)


@pytest.mark.parametrize(
    ("name", "pre"), [("spm", None), ("spm_and_json", None), ("llama3", "llama-bpe"), ("qwen", "qwen2")]
)
def test_its_tokenizer_is_the_one_that_was_written(name: str, pre: str | None, tmp_path) -> None:
    directory = GOLDENS / "tokenizers" / name
    golden = json.loads((directory / "golden.json").read_text(encoding="utf-8"))
    original = load_tokenizer(directory)
    write_gguf(GOLDENS / "llama2_gqa", tmp_path / "model.gguf", "F16", fields_of(original, directory, pre))
    # What a file cannot say: that the space goes before the first part of a text only, or that a token takes the
    # white space around it along.
    settings = {"legacy": False} if name == "spm" else {}
    write_gguf_tokenizer(tmp_path / "model.gguf", tmp_path)
    inside, tokenizer = (load_tokenizer(place, settings=settings) for place in (tmp_path / "model.gguf", tmp_path))
    assert inside.config == tokenizer.config
    assert len(inside) == len(tokenizer) == len(original)
    for row in golden["encode"]:
        if name == "spm" and "<note>" in row["text"]:
            continue
        # llama.cpp leaves out the normalization of Qwen's tokenizer.json.
        text = unicodedata.normalize("NFC", row["text"]) if pre == "qwen2" else row["text"]
        assert inside.encode(text) == golden["prefix"] + row["ids"], text
        assert tokenizer.encode(text) == golden["prefix"] + row["ids"], text
    for row in golden["decode"]:
        assert tokenizer.decode(row["ids"]) == row["text"], row["ids"]
        assert tokenizer.decode(row["ids"], skip_special_tokens=False) == row["text_with_special"], row["ids"]
    for row in golden["chat"]:
        assert tokenizer.apply_chat_template(row["messages"], **row["arguments"]) == row["ids"]
    for key in ("bos_token_id", "eos_token_id", "all_special_ids"):
        assert getattr(tokenizer, key) == getattr(original, key), key


def test_settings_and_another_tokenizer_win(tmp_path) -> None:
    directory = GOLDENS / "tokenizers" / "qwen"
    original = load_tokenizer(directory)
    path = tmp_path / "model.gguf"
    write_gguf(GOLDENS / "llama2_gqa", path, "F16", fields_of(original, directory, "qwen2"))
    assert load_tokenizer(path, settings={"chat_template": "x"}).config.chat_templates == {"default": "x"}
    other = GOLDENS / "tokenizers" / "spm" / "tokenizer.model"
    assert len(load_tokenizer(path, settings={"vocab_file": str(other)})) == len(load_tokenizer(other.parent))
    named = load_tokenizer(path, settings={"tokenizer_file": str(directory / "tokenizer.json")})
    assert named.chat_template == original.chat_template
    assert (named.eos_token_id, named.pad_token_id) == (original.eos_token_id, original.pad_token_id)
    assert named.config.add_bos_token is False
    assert source_of(path).generation.eos_token_id == (original.eos_token_id,)
    assert len(AutoTokenizer.from_pretrained(path)) == len(original)
    both = {"pretrained_model_dir": str(path), "load_checkpoint": str(directory)}
    with pytest.raises(ConfigError, match="model.gguf is a whole model, and .* another's weights"):
        resolve(load_config(both))


def test_factors_of_rotary_frequencies(tmp_path) -> None:
    """Llama 3.1's scaling, as llama.cpp stores it."""
    factors = np.array([1, 1.5, 4, 8], np.float32)
    path = tmp_path / "model.gguf"
    write_gguf(GOLDENS / "llama2_gqa", path, "F16", lambda writer: writer.add_tensor("rope_freqs.weight", factors))
    model, plain = source_of(path).model, source_of(GOLDENS / "llama2_gqa").model
    found, expected = model.rotation(model.rope), plain.rotation(plain.rope)
    np.testing.assert_allclose(found[0], expected[0] / factors, rtol=1e-6)
    np.testing.assert_array_equal(found[1], expected[1])


def test_a_model_in_parts(tmp_path) -> None:
    write_gguf(GOLDENS / "qwen3_moe", tmp_path / "whole.gguf", "F32")
    write_gguf(GOLDENS / "qwen3_moe", tmp_path / "model.gguf", "F32", parts=12)
    parts = sorted(tmp_path.glob("model-*.gguf"))
    assert len(parts) > 2
    expected = parameters(source_of(tmp_path / "whole.gguf"), Format.FLOAT32)
    for part in parts[:2]:
        found = parameters(source_of(part), Format.FLOAT32)
        assert found.keys() == expected.keys()
        for name, array in found.items():
            np.testing.assert_array_equal(array, expected[name], err_msg=name)
    shutil.copy(parts[0], parts[1])
    with pytest.raises(CheckpointError, match="not those of one model"):
        source_of(parts[0])
    parts[1].unlink()
    with pytest.raises(CheckpointError, match=f"1 of its {len(parts)} parts are missing .model-00002-of"):
        source_of(parts[0])
    shutil.copy(parts[0], tmp_path / "renamed.gguf")
    with pytest.raises(CheckpointError, match=f"is one of {len(parts)} parts, and not named so"):
        source_of(tmp_path / "renamed.gguf")


def test_the_first_files_of_mixtral_store_experts_separately(tmp_path, monkeypatch) -> None:
    write_gguf(GOLDENS / "mixtral", tmp_path / "stacked.gguf", "F32")
    monkeypatch.setattr(
        "gguf_files.their_name",
        lambda name, _: re.sub(
            r"blk\.(\d+)\.(ffn_\w+)_exps\.weight", rf"blk.\1.\2.{expert_of(name)}.weight", their_name(name)
        ),
    )
    write_gguf(GOLDENS / "mixtral", tmp_path / "apart.gguf", "F32")
    found, expected = (
        parameters(source_of(tmp_path / f"{name}.gguf"), Format.FLOAT32) for name in ("apart", "stacked")
    )
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def expert_of(name: str) -> str:
    found = re.search(r"experts\.(\d+)", name)
    return found[1] if found else ""


def test_missing_expert_tensors_are_rejected(tmp_path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(GOLDENS / "llama2_gqa", path, "F16", lambda writer: writer.add_expert_count(8))
    with pytest.raises(CheckpointError, match="has experts and no blk"):
        source_of(path)
    write_gguf(GOLDENS / "llama2_gqa", path, "F16", lambda writer: writer.add_tokenizer_model("bert"))
    with pytest.raises(TokenizerError, match="tokenizer of kind bert, .*tokenizer_file"):
        source_of(path).tokenizer()
    writer = gguf.GGUFWriter(path, "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(
        CheckpointError, match="architecture 'mamba' are not read; read are llama, qwen2, qwen3, qwen2moe"
    ):
        source_of(path)


@pytest.mark.parametrize("keep", [0, 3, 40, 3000, -500])
def test_damage_is_named(keep: int, tmp_path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(GOLDENS / "llama2_gqa", path, "F16")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model.gguf.*(damaged|truncated|cannot be read)"):
        source_of(path).pairs()


def test_the_package_gguf_is_required_only_for_unknown_blocks(tmp_path, monkeypatch) -> None:
    """Only where a file has blocks that we do not know."""
    for kinds in ("F16", {"o_proj.weight": "Q5_0", "": "F16"}):
        write_gguf(GOLDENS / "llama2_gqa", tmp_path / f"{len(kinds)}.gguf", kinds)
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert source_of(tmp_path / "3.gguf").pairs()
    with pytest.raises(
        CheckpointError, match="need the package gguf, which is not installed; pip install gguf"
    ) as raised:
        source_of(tmp_path / "2.gguf")
    assert raised.value.exit_code == 2


@pytest.mark.parametrize("seed", range(24))
def test_a_damaged_header_is_one_of_our_errors_or_none(seed: int, tmp_path) -> None:
    random = np.random.default_rng(seed)
    path = tmp_path / "model.gguf"
    write_gguf(GOLDENS / "llama2_gqa", path, "F16", fields_of(load_tokenizer(DEMO), DEMO))
    data = bytearray(path.read_bytes())
    for _ in range(3):
        data[random.integers(0, len(data) // 3)] ^= 1 << random.integers(0, 8)
    path.write_bytes(data)
    try:
        source = source_of(path)
        source.pairs()
        source.tokenizer()
    except InferenceError as error:
        assert "model.gguf" in str(error)
