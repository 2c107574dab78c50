"""Checkpoints that spell and lay out their tensors in another way: each gives the same parameters.

The expected ones are those of a golden model as it is stored, which the goldens compare with their source; here its
tensors are renamed, fused, split and reordered by hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_weights import GOLDENS, golden, load

from inference.checkpoint.open import open_checkpoint
from inference.checkpoint.tensor import Checkpoint, Segment, StoredTensor
from inference.errors import CheckpointError
from inference.kernels.formats import Format, pack_into
from inference.models.architecture.config import ModelConfig
from inference.models.architecture.registry import model_config_from
from inference.models.weights import loading, weight_formats
from inference.models.weights.export import convert
from inference.models.weights.parameters import parameter_shapes
from inference.models.weights.sharding import Shard

Arrays = dict[str, np.ndarray]


def arrays_of(checkpoint: Checkpoint) -> Arrays:
    values = {name: np.empty(tensor.shape, np.float32) for name, tensor in checkpoint.items()}
    for name, tensor in checkpoint.items():
        tensor.read_into(values[name])
    return values


def stored(arrays: Mapping[str, np.ndarray], path: Path) -> Checkpoint:
    """The arrays in a file."""
    checkpoint, offset = {}, 0
    with path.open("wb") as file:
        for name, array in arrays.items():
            file.write(np.ascontiguousarray(array).tobytes())
            dtype = "bfloat16" if array.dtype == np.uint16 else "float32"
            checkpoint[name] = StoredTensor(name, dtype, array.shape, (Segment(path, offset, array.nbytes),))
            offset += array.nbytes
    return checkpoint


def renamed(arrays: Arrays, *names: tuple[str, str]) -> Arrays:
    out = {}
    for name, array in arrays.items():
        for ours, theirs in names:
            name = re.sub(ours, theirs, name)
        out[name] = array
    return out


def same(checkpoint: Checkpoint, config: ModelConfig, expected: Arrays) -> bool:
    found = load(checkpoint, config)
    return found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in expected)


def test_megatron_names_of_mindformers(tmp_path: Path) -> None:
    checkpoint, config = golden("qwen3")
    arrays = renamed(
        arrays_of(checkpoint),
        (r"^model\.embed_tokens\.", "embedding.word_embeddings."),
        (r"^model\.layers\.", "decoder.layers."),
        (r"^model\.norm\.", "decoder.final_layernorm."),
        (r"^lm_head\.", "output_layer."),
        (r"\.self_attn\.([qkv])_proj\.", r".self_attention.linear_\1."),
        (r"\.self_attn\.o_proj\.", ".self_attention.linear_proj."),
        (r"\.self_attn\.([qk])_norm\.", r".self_attention.\1_layernorm."),
        (r"\.post_attention_layernorm\.", ".pre_mlp_layernorm."),
        (r"\.mlp\.gate_proj\.", ".mlp.gating."),
        (r"\.mlp\.up_proj\.", ".mlp.hidden."),
        (r"\.mlp\.down_proj\.", ".mlp.linear_fc2."),
    )
    assert not any(name.startswith("model.") for name in arrays)
    assert same(stored(arrays, tmp_path / "w"), config, load(checkpoint, config))


@pytest.mark.parametrize("rearranged", [False, True])
def test_mindformers_chatglm_is_split(tmp_path: Path, rearranged: bool) -> None:
    checkpoint, config = golden("chatglm3")
    arrays = renamed(arrays_of(checkpoint), (r"word_embeddings\.weight", "embedding_weight"))
    sizes = np.cumsum([config.query_size, config.kv_size])
    for name in list(arrays):
        if "query_key_value" in name:
            for part, rows in zip("qkv", np.split(arrays.pop(name), sizes), strict=True):
                if rearranged and part != "v":
                    heads = rows.reshape(-1, config.head_dim, *rows.shape[1:])
                    rows = np.concatenate([heads[:, 0::2], heads[:, 1::2]], 1).reshape(rows.shape)
                arrays[name.replace("query_key_value", f"w{part}")] = rows
        elif "dense_h_to_4h" in name:
            for side, rows in zip(("left", "right"), np.split(arrays.pop(name), 2), strict=True):
                arrays[name.replace("dense_h_to_4h", f"dense_{side}")] = rows
    expected = load(checkpoint, config)
    if rearranged:
        values = json.loads((GOLDENS / "chatglm3/config.json").read_text())
        config = model_config_from({**values, "use_rearrange_rope": True}, "predict.yaml")
    assert same(stored(arrays, tmp_path / "w"), config, expected)


def test_telechat_with_separate_keys_and_values(tmp_path: Path) -> None:
    checkpoint, config = golden("telechat2")
    arrays = arrays_of(checkpoint)
    for name in [name for name in arrays if "key_value" in name]:
        heads = arrays.pop(name).reshape(config.num_kv_heads, 2, config.head_dim, -1)
        for index, part in enumerate(("key", "value")):
            arrays[name.replace("key_value", part)] = heads[:, index].reshape(config.kv_size, -1)
    assert same(stored(arrays, tmp_path / "w"), config, load(checkpoint, config))


def test_gpt2_without_its_prefix_and_with_its_masks(tmp_path: Path) -> None:
    checkpoint, config = golden("gpt2")
    arrays = renamed(arrays_of(checkpoint), (r"^transformer\.", ""))
    arrays |= {
        f"h.{layer}.attn.{mask}": np.ones((1, 1, 4, 4), np.float32)
        for layer in (0, 1)
        for mask in ("bias", "masked_bias")
    }
    assert same(stored(arrays, tmp_path / "w"), config, load(checkpoint, config))


def test_mindformers_gpt2(tmp_path: Path) -> None:
    checkpoint, config = golden("gpt2")
    arrays = arrays_of(checkpoint)
    for name in [name for name in arrays if "c_attn" in name]:
        parts = np.split(arrays.pop(name), 3, axis=-1)
        arrays |= {name.replace("attn.c_attn", f"attention.dense{i + 1}"): part.T for i, part in enumerate(parts)}
    arrays = renamed(
        arrays,
        (r"^transformer\.wte\.weight", "backbone.embedding.word_embedding.embedding_table"),
        (r"^transformer\.wpe\.weight", "backbone.embedding.position_embedding.embedding_table"),
        (r"^transformer\.h\.", "backbone.blocks."),
        (r"^transformer\.ln_f\.", "backbone.layernorm."),
        (r"\.ln_(\d)\.", r".layernorm\1."),
        (r"(norm\d?)\.weight", r"\1.gamma"),
        (r"(norm\d?)\.bias", r"\1.beta"),
        (r"\.attn\.c_proj\.", ".attention.projection."),
        (r"\.mlp\.c_fc\.", ".output.mapping."),
        (r"\.mlp\.c_proj\.", ".output.projection."),
    )
    assert same(stored(arrays, tmp_path / "w"), config, load(checkpoint, config))


def test_a_transposed_tensor_of_the_wrong_shape_is_named() -> None:
    checkpoint, config = golden("gpt2")
    name = "transformer.h.0.mlp.c_fc.weight"
    checkpoint[name] = replace(checkpoint[name], shape=(128, 32))
    with pytest.raises(CheckpointError, match=r"mlp.up_proj.weight is \[128, 32\], the config says \[32, 128\]"):
        loading.fit(checkpoint, config, Path("model"))


@pytest.mark.parametrize("name", ["internlm2", "chatglm3", "gpt2", "baichuan2_7b", "gemma3", "glm4"])
def test_sixteen_bits_packed_are_the_values_packed(tmp_path: Path, name: str) -> None:
    """What is arranged as it loads is arranged in either way that memory takes it: as elements, or as values."""
    checkpoint, config = golden(name)
    halves = {key: (array.view(np.uint32) >> 16).astype(np.uint16) for key, array in arrays_of(checkpoint).items()}
    pairs = loading.fit(stored(halves, tmp_path / "w"), config, tmp_path)
    for parameter, shape in parameter_shapes(config).items():
        if len(shape) == 1:
            continue
        packed = np.zeros(Format.BFLOAT16.shape(*shape), np.uint8)
        plain = np.zeros(shape, np.float32)
        for tensor, place in pairs:
            if place.parameter == parameter:
                loading.Destination(packed, Format.BFLOAT16, Format.BFLOAT16).write(tensor, place)
                loading.Destination(plain, None, Format.BFLOAT16).write(tensor, place)
        assert np.array_equal(loading.unpack(packed, Format.BFLOAT16, *shape), plain)


@pytest.mark.parametrize("name", ["telechat2", "chatglm3", "gpt2", "baichuan2_13b", "gemma2"])
def test_a_converted_model_is_arranged_once(tmp_path: Path, name: str) -> None:
    checkpoint, config = golden(name)
    pairs = loading.fit(checkpoint, config, GOLDENS / name)
    own = json.loads((GOLDENS / name / "config.json").read_text())
    convert([(Shard(config), pairs)], own, None, tmp_path / "packed", Format.FLOAT16, pack_into)
    again = model_config_from(json.loads((tmp_path / "packed/config.json").read_text()), name)
    assert again == config
    shapes, formats = parameter_shapes(config), weight_formats.formats_of(config, Format.FLOAT16)
    packed = loading.fit_packed(open_checkpoint(tmp_path / "packed"), shapes, formats, tmp_path)
    arrays = [{key: np.zeros(shape, np.float32) for key, shape in shapes.items()} for _ in ("packed", "own")]
    for some, into in zip((packed, pairs), arrays, strict=True):
        loading.load(some, {key: loading.Destination(array, None, formats[key]) for key, array in into.items()})
    assert all(np.array_equal(array, arrays[1][key]) for key, array in arrays[0].items())
