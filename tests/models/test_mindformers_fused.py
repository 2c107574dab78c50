"""Joined matrices of MindFormers are taken apart: the weights are those that they were joined from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from inference.checkpoint.open import open_checkpoint
from inference.config import load_config
from inference.errors import CheckpointError
from inference.kernels.formats import Format
from inference.models.architecture.config import ModelConfig
from inference.models.source import resolve
from inference.models.weights import loading, weight_formats
from inference.models.weights.mindformers_fused import separate
from inference.models.weights.parameters import parameter_shapes

GOLDENS = Path(__file__).parents[1] / "goldens"
OLD = {
    # The joined ones, then the others.
    "qkv": "attention.w_qkv",
    "gate_up": "feed_forward.w_gate_hidden",
    "embed_tokens.weight": "tok_embeddings.embedding_weight",
    "self_attn.o_proj": "attention.wo",
    "mlp.down_proj": "feed_forward.w2",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.norm.": "model.norm_out.",
}
NEW = {
    "qkv": "self_attention.linear_qkv",
    "gate_up": "mlp.linear_fc1",
    "model.embed_tokens.": "embedding.word_embeddings.",
    "model.norm.": "decoder.final_layernorm.",
    "lm_head.": "output_layer.",
    "model.layers.": "decoder.layers.",
    ".self_attn.o_proj.": ".self_attention.linear_proj.",
    ".self_attn.q_norm.": ".self_attention.q_layernorm.",
    ".self_attn.k_norm.": ".self_attention.k_layernorm.",
    ".mlp.down_proj.": ".mlp.linear_fc2.",
    ".post_attention_layernorm.": ".pre_mlp_layernorm.",
}


def joined(parts: list[np.ndarray], config: ModelConfig, layout: str) -> np.ndarray:
    """As MindFormers' convert_weight.py joins them."""
    if layout == "stacked":
        return np.concatenate(parts)
    groups = config.num_kv_heads if len(parts) == 3 else len(parts[0])
    return np.concatenate([part.reshape(groups, -1, *part.shape[1:]) for part in parts], axis=1).reshape(
        -1, *parts[0].shape[1:]
    )


def write(model: str, place: Path, names: dict[str, str], layout: str, dtype: type) -> ModelConfig:
    """A golden's weights with joined matrices, in a directory with its config.json."""
    shutil.copy(GOLDENS / model / "config.json", place)
    source = resolve(load_config({"pretrained_model_dir": str(GOLDENS / model)}))
    tensors = {}
    for file in sorted((GOLDENS / model).glob("*.safetensors")):
        tensors |= {name: array.astype(dtype) for name, array in load_file(file).items()}
    for layer in range(source.model.num_layers):
        for joint, inside, parts in (("qkv", "self_attn", "qkv"), ("gate_up", "mlp", ("gate", "up"))):
            for kind in ("weight", "bias"):
                of = [f"model.layers.{layer}.{inside}.{part}_proj.{kind}" for part in parts]
                if of[0] in tensors:
                    arrays = [tensors.pop(name) for name in of]
                    tensors[f"model.layers.{layer}.{names[joint]}.{kind}"] = joined(arrays, source.model, layout)
    for ours, theirs in list(names.items())[2:]:
        tensors = {name.replace(ours, theirs): array for name, array in tensors.items()}
    save_file(tensors, place / "model.safetensors")
    return source.model


def loaded(directory: Path, weight_format: Format, **engine: str) -> dict[str, np.ndarray]:
    """The network's parameters, packed."""
    source = resolve(load_config({"pretrained_model_dir": str(directory), "engine": engine}))
    formats = weight_formats.formats_of(source.model, weight_format)
    arrays, destinations = {}, {}
    for name, shape in parameter_shapes(source.model).items():
        memory = None if len(shape) == 1 else formats[name]
        dtype, layout = weight_formats.memory_layout(shape, memory)
        arrays[name] = np.zeros(layout, dtype)
        destinations[name] = loading.Destination(arrays[name], memory, formats[name])
    loading.load(source.pairs() or [], destinations)
    return arrays


@pytest.mark.parametrize(
    ("model", "names", "layout"),
    [
        ("llama2_gqa", OLD, "stacked"),
        ("llama2_gqa", OLD, "interleaved"),
        ("qwen2", OLD, "interleaved"),
        ("qwen3", NEW, "interleaved"),
    ],
    ids=["stacked", "interleaved", "with biases", "newer names"],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=str)
@pytest.mark.parametrize("chunk", [1 << 22, 1000], ids=["whole", "in pieces"])
def test_the_weights_are_the_same(model, names, layout, dtype, chunk, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("inference.models.weights.mindformers_fused.CHUNK", chunk)
    monkeypatch.setattr("inference.models.weights.loading.PACKED_AT_ONCE", 3 * chunk)
    write(model, tmp_path, names, layout, dtype)
    engine = {} if names is NEW else {"qkv_layout": layout}
    weight_format = Format.FLOAT32 if dtype is np.float32 else Format.FLOAT16
    found = loaded(tmp_path, weight_format, **engine)
    expected = loaded(GOLDENS / model, weight_format)
    assert found.keys() == expected.keys()
    for name, array in found.items():
        # Vectors are stored in 16 bits, too, where all is.
        tolerance = 2e-3 if array.ndim == 1 and dtype is np.float16 else 0
        np.testing.assert_allclose(array, expected[name], rtol=tolerance, err_msg=name)


def test_the_other_layout_gives_other_weights(tmp_path) -> None:
    """Both fit the config: only the user can know, so nothing is guessed."""
    write("llama2_gqa", tmp_path, OLD, "stacked", np.float32)
    one, other = (loaded(tmp_path, Format.FLOAT32, qkv_layout=layout) for layout in ("stacked", "interleaved"))
    assert any((one[name] != other[name]).any() for name in one)
    with pytest.raises(CheckpointError, match="is joined of several matrices, .* --engine.qkv_layout stacked"):
        loaded(tmp_path, Format.FLOAT32)


def test_a_joined_matrix_of_another_size_is_rejected(tmp_path) -> None:
    config = write("llama2_gqa", tmp_path, OLD, "stacked", np.float32)
    changed = json.loads((tmp_path / "config.json").read_text())
    changed["num_key_value_heads"] = config.num_heads
    (tmp_path / "config.json").write_text(json.dumps(changed))
    with pytest.raises(
        CheckpointError, match=r"'model.layers.0.attention.w_qkv.weight' is \[\d+, \d+\], the config says"
    ):
        loaded(tmp_path, Format.FLOAT32, qkv_layout="stacked")


def test_bytes_are_counted_once(tmp_path) -> None:
    """Progress and the mark of a job go by them."""
    write("qwen3", tmp_path, NEW, "interleaved", np.float16)
    pairs = resolve(load_config({"pretrained_model_dir": str(tmp_path)})).pairs()
    size = sum(segment.size for tensor, _ in pairs for segment in tensor.segments)
    assert size == sum(tensor.shape[0] * (tensor.shape[1:] or (1,))[0] * 2 for tensor, _ in pairs)


def test_other_checkpoints_are_unchanged() -> None:
    source = resolve(load_config({"pretrained_model_dir": str(GOLDENS / "qwen2")}))
    checkpoint = open_checkpoint(GOLDENS / "qwen2")
    assert separate(checkpoint, source.model, None, Path("x")) == checkpoint
