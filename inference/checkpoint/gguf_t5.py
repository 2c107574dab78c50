"""T5 in GGUF files: its sizes as keys of config.json, and the names of its tensors.

Source: conversion/t5.py and the architecture t5 in llama.cpp.
"""

from __future__ import annotations

import re
from typing import Any

from inference.checkpoint.gguf_header import GgufFile
from inference.files.values import LARGEST_FLOAT, Reader, integer, number

_COUNT: Reader[Any] = integer(0, 2**63 - 1, "an integer")
_REAL = number(0.0, LARGEST_FLOAT, "a finite number")
# Hugging Face's keys and GGUF's, without the prefix.
SIZES = {
    "d_model": "embedding_length",
    "d_ff": "feed_forward_length",
    "num_layers": "block_count",
    "num_decoder_layers": "decoder_block_count",
    "num_heads": "attention.head_count",
    "d_kv": "attention.key_length",
    "n_positions": "context_length",
    "relative_attention_num_buckets": "attention.relative_buckets_count",
    "decoder_start_token_id": "decoder_start_token_id",
}
NAMES = {
    "token_embd": "shared",
    "output": "lm_head",
    "enc.output_norm": "encoder.final_layer_norm",
    "dec.output_norm": "decoder.final_layer_norm",
}
_BLOCK = re.compile(r"(enc|dec)\.blk\.(\d+)\.(\w+)")
_STACKS = {"enc": "encoder", "dec": "decoder"}
# Names of a block's tensors; the number is that of the sublayer, which for the feed-forward depends on the stack.
_PARTS = {
    "attn_norm": "0.layer_norm",
    "attn_rel_b": "0.SelfAttention.relative_attention_bias",
    **{f"attn_{part}": f"0.SelfAttention.{part}" for part in "qkvo"},
    "cross_attn_norm": "1.layer_norm",
    "cross_attn_rel_b": "1.EncDecAttention.relative_attention_bias",
    **{f"cross_attn_{part}": f"1.EncDecAttention.{part}" for part in "qkvo"},
    "ffn_norm": "{last}.layer_norm",
    "ffn_gate": "{last}.DenseReluDense.wi_0",
    "ffn_up": "{last}.DenseReluDense.{up}",
    "ffn_down": "{last}.DenseReluDense.wo",
}


def is_gated(file: GgufFile) -> bool:
    """Whether the feed-forwards have a gate, as in T5 v1.1."""
    return file.tensor("enc.blk.0.ffn_gate.weight") is not None


def t5_config_of(file: GgufFile) -> dict[str, Any]:
    """Return a T5's sizes under the keys of config.json.

    Raises:
        CheckpointError: a size is of the wrong type.
    """
    values = {ours: file.read(f"t5.{theirs}", _COUNT, None) for ours, theirs in SIZES.items()}
    eps = file.read("t5.attention.layer_norm_rms_epsilon", _REAL, 1e-6)
    return {
        **{key: value for key, value in values.items() if value is not None},
        "layer_norm_epsilon": eps,
        "feed_forward_proj": "gated-gelu" if is_gated(file) else "relu",
    }


def t5_name(name: str, gated: bool) -> str:
    """Return a tensor's name in Hugging Face's T5; an unknown name is returned unchanged."""
    stem, _, kind = name.rpartition(".")
    if stem in NAMES:
        return f"{NAMES[stem]}.{kind}"
    block = _BLOCK.fullmatch(stem)
    if block is None or block[3] not in _PARTS:
        return name
    part = _PARTS[block[3]].format(last=1 if block[1] == "enc" else 2, up="wi_1" if gated else "wi")
    return f"{_STACKS[block[1]]}.block.{block[2]}.layer.{part}.{kind}"
