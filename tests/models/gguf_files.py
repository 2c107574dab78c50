"""Writes models as GGUF files, with the writer of the package `gguf`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from benchmarking.gguf_file import gguf_name, pairs_from_halves

NAMES = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}


def their_name(name: str) -> str:
    for ours, theirs in NAMES.items():
        if ours in name:
            return f"blk.{name.split('.')[2]}.{theirs}.weight"
    return gguf_name(name)


def write_gguf(
    directory: Path,
    target: Path,
    kinds: str | dict[str, str],
    more: Callable[[Any], None] | None = None,
    head_dim: int | None = None,
) -> dict[str, np.ndarray]:
    """Writes `target`.

    Args:
        kinds: GGML's name of the matrices' type; or of those whose name ends so, "" for the others.
        more: writes further fields.

    Returns:
        The values that each tensor stands for, under Hugging Face's names.
    """
    import gguf

    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    architecture = {"mistral": "llama"}.get(config["model_type"], config["model_type"])
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(target, architecture)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_freq_base((config.get("rope_parameters") or config)["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if config.get("head_dim"):
        writer.add_key_length(config["head_dim"])
    if config["model_type"] == "mistral" and config.get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])
    if more:
        more(writer)
    values = {}
    for file in sorted(directory.glob("*.safetensors")):
        for name, array in load_file(file).items():
            array = array.astype(np.float32)
            if config.get("tie_word_embeddings") and name == "lm_head.weight":
                continue
            by_end = kinds if isinstance(kinds, dict) else {"": kinds}
            kind = next(kind for end, kind in by_end.items() if name.endswith(end)) if array.ndim == 2 else "F32"
            rotated = {"q_proj": heads, "k_proj": kv_heads}.get(name.split(".")[-2])
            stored = pairs_from_halves(array, rotated) if architecture == "llama" and rotated else array
            ggml = gguf.GGMLQuantizationType[kind]
            packed = gguf.quantize(np.ascontiguousarray(stored), ggml)
            writer.add_tensor(their_name(name), packed, raw_dtype=ggml)
            values[name] = gguf.dequantize(gguf.quantize(array, ggml), ggml)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values
