"""Goldens as MindFormers 1.1 to 1.5 stores models of experts and of latents: each gives the same parameters."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from test_layouts import Arrays, arrays_of, renamed, stored
from test_weights import golden

from inference.checkpoint.tensor import Checkpoint
from inference.errors import CheckpointError
from inference.kernels.formats import Format
from inference.models.architecture.config import ModelConfig
from inference.models.weights import loading
from inference.models.weights.mindformers_layouts import as_published
from inference.models.weights.sharding import Shard

# As convert_weight.py of its research/mixtral and research/deepseek2 names tensors.
NAMES = [
    (r"embed_tokens\.weight", "tok_embeddings.embedding_weight"),
    (r"model\.norm\.weight", "model.norm_out.weight"),
    (r"\.input_layernorm\.", ".attention_norm."),
    (r"\.post_attention_layernorm\.", ".ffn_norm."),
    (r"\.self_attn\.([qkvo])_proj\.", r".attention.w\1."),
    (r"\.block_sparse_moe\.gate\.", ".feed_forward.router.dense."),
    (r"\.mlp\.gate\.weight", ".feed_forward.routed_experts.router.dense.weight"),
    (r"\.mlp\.gate\.e_score_correction_bias", ".feed_forward.routed_experts.router.router.topk_bias"),
    (r"\.mlp\.shared_expert_gate\.", ".feed_forward.shared_experts_gate."),
    (r"\.mlp\.shared_experts?\.", ".feed_forward.shared_experts."),
    (r"\.mlp\.(?!experts)", ".feed_forward."),
    (r"feed_forward\.(shared_experts\.)?gate_proj\.", r"feed_forward.\1w1."),
    (r"feed_forward\.(shared_experts\.)?down_proj\.", r"feed_forward.\1w2."),
    (r"feed_forward\.(shared_experts\.)?up_proj\.", r"feed_forward.\1w3."),
    (r"\.self_attn\.q_a_proj\.", ".attention.q2l_proj."),
    (r"\.self_attn\.q_a_layernorm\.", ".attention.lq_norm."),
    (r"\.self_attn\.q_b_proj\.", ".attention.l2q_proj."),
    (r"\.self_attn\.kv_a_proj_with_mqa\.", ".attention.kv2l."),
    (r"\.self_attn\.kv_a_layernorm\.", ".attention.lkv_norm."),
    (r"\.self_attn\.kv_b_proj\.", ".attention.lkv2kv."),
]
WIDTHS = {"gate_proj": "w1", "w1": "w1", "down_proj": "w2", "w2": "w2", "up_proj": "w3", "w3": "w3"}


def legacy(arrays: Arrays, config: ModelConfig, grouped: bool) -> Arrays:
    """The experts of a layer stacked, transposed for grouped products."""
    theirs, stacks = {}, {}
    for name, array in renamed(arrays, *NAMES).items():
        found = re.fullmatch(r"(.*)\.(?:mlp|block_sparse_moe)\.experts\.(\d+)\.(\w+)\.weight", name)
        if found is None:
            theirs[name] = array
            continue
        inner = (
            "routed_experts." if f"{found[1]}.feed_forward.shared_experts.w1.weight" in renamed(arrays, *NAMES) else ""
        )
        place = f"{found[1]}.feed_forward.{inner}ffn.{WIDTHS[found[3]]}.weight"
        stacks.setdefault(place, {})[int(found[2])] = array.T if grouped else array
    return theirs | {name: np.stack([stack[e] for e in range(len(stack))]) for name, stack in stacks.items()}


def split_latents(arrays: Arrays, config: ModelConfig) -> Arrays:
    """As research/deepseek3 does: rotated rows apart from the others, in the order of halves."""
    latent, heads, out = config.latent, config.num_heads, {}
    assert latent is not None
    for name, array in arrays.items():
        width = array.shape[-1]
        if ".l2q_proj." in name:
            by_head = array.reshape(heads, latent.query, width)
            turned = by_head[:, latent.nope :].reshape(heads, latent.rope // 2, 2, width).transpose(0, 2, 1, 3)
            out[name.replace("l2q_proj", "l2q_nope_proj")] = by_head[:, : latent.nope].reshape(-1, width)
            out[name.replace("l2q_proj", "l2q_pe_proj")] = turned.reshape(-1, width)
        elif ".kv2l." in name:
            turned = array[latent.rank :].reshape(latent.rope // 2, 2, width).transpose(1, 0, 2)
            out[name.replace("kv2l", "kv2l_latent_kv")] = array[: latent.rank]
            out[name.replace("kv2l", "kv2l_k_pe")] = turned.reshape(-1, width)
        elif ".lkv2kv." in name:
            by_head = array.reshape(heads, latent.nope + latent.value, width)
            out[name.replace("lkv2kv", "lkv2kv_k_nope")] = by_head[:, : latent.nope].reshape(-1, width)
            out[name.replace("lkv2kv", "lkv2kv_v")] = by_head[:, latent.nope :].reshape(-1, width)
        else:
            out[name] = array
    return out


def parameters(checkpoint: Checkpoint, config: ModelConfig, rank: int, ranks: int) -> Arrays:
    """A rank's part of the network's parameters."""
    shard = Shard(config, rank, ranks)
    arrays = {name: np.zeros(shape, np.float32) for name, shape in shard.parameter_shapes().items()}
    places = {name: loading.Destination(array, None, Format.FLOAT32) for name, array in arrays.items()}
    loading.load(shard.cut(loading.fit(checkpoint, config, Path("x"))), places)
    return arrays


@pytest.mark.parametrize("grouped", [False, True], ids=["plain", "grouped"])
@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "deepseek_v2_lite", "deepseek_v2", "deepseek_v3"])
def test_experts_in_one_tensor(name: str, grouped: bool, tmp_path: Path) -> None:
    checkpoint, config = golden(name)
    arrays = legacy(arrays_of(checkpoint), config, grouped)
    assert any(array.ndim == 3 for array in arrays.values()) and not any("mlp" in key for key in arrays)
    if name == "deepseek_v3":
        arrays = split_latents(arrays, config)
        arrays["model.mtp_hidden_fusers.0.dense.weight"] = np.zeros((3, 3), np.float32)
    found = as_published(stored(arrays, tmp_path / "model"), config, tmp_path)
    for rank, ranks in ((0, 1), (0, 2), (1, 2)):
        expected, theirs = (parameters(source, config, rank, ranks) for source in (checkpoint, found))
        for parameter, array in theirs.items():
            np.testing.assert_array_equal(array, expected[parameter], err_msg=parameter)


def test_sixteen_bits_are_read_unchanged(tmp_path: Path) -> None:
    checkpoint, config = golden("deepseek_v3")
    plain = split_latents(legacy(arrays_of(checkpoint), config, True), config)
    halves = {name: (array.view(np.uint32) >> 16).astype(np.uint16) for name, array in plain.items()}
    found = as_published(stored(halves, tmp_path / "model"), config, tmp_path)
    for tensor in found.values():
        wide, raw = np.empty(tensor.shape, np.float32), np.empty(tensor.shape, np.uint16)
        tensor.read_into(wide)
        tensor.read_bytes_into(raw.reshape(-1).view(np.uint8))
        np.testing.assert_array_equal((raw.astype(np.uint32) << 16).view(np.float32), wide, err_msg=tensor.name)


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    checkpoint, config = golden("deepseek_v3")
    arrays = split_latents(legacy(arrays_of(checkpoint), config, False), config)
    first = next(name for name, array in arrays.items() if array.ndim == 3)
    for change, message in (
        ({first: arrays[first][1:]}, r"ffn.w\d.weight' is \[7, .*the config says \[8, .* for grouped products"),
        ({"model.layers.0.attention.lkv2kv_v.weight": None}, "and no 'model.layers.0.attention.lkv2kv_v.weight'"),
        ({"model.layers.0.attention.kv2l_k_pe.weight": np.zeros((1, 32), np.float32)}, "says 24 rows together"),
    ):
        left = {name: array for name, array in {**arrays, **change}.items() if array is not None}
        with pytest.raises(CheckpointError, match=message):
            as_published(stored(left, tmp_path / "model"), config, tmp_path)
