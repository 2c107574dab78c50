"""GGUF files: sizes and weights.

Sources: the specification (github.com/ggml-org/ggml, docs/gguf.md), and for the blocks ggml-common.h. A block is 32
values of a row with a float16 scale d before them:

Q8_0  int8 q: the value is q * d, as in our int8.
Q4_0  16 bytes, value i in the low half of byte i, value i + 16 in the high one: (q - 8) * d, as in our int4.

Other quantised types are dequantised by the package `gguf`. Of the architecture `llama`, llama.cpp rotates neighbouring
pairs of a head, so its rows of q and k lie in that order; `qwen2` and `qwen3` rotate halves, as Hugging Face has them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inference.errors import CheckpointError
from inference.kernels.formats import GROUP
from inference.models.checkpoint import Checkpoint, Segment, StoredTensor
from inference.models.coded import Codes, QuantisedTensor, narrowest_form
from inference.models.gguf_header import HINT, GgufFile, GgufTensor, open_gguf

# GGUF's architectures, and the ones that their files are of here.
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
# Hugging Face's keys and GGUF's, after the name of the architecture.
SIZES = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "head_dim": "attention.key_length",
    "sliding_window": "attention.sliding_window",
}
NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# What rotary frequencies are divided by, pair by pair: how Llama 3.1's scaling is stored.
FACTORS = "rope_freqs.weight"
PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
# Bytes of a block of 32 values.
BLOCKS = {"Q8_0": 34, "Q4_0": 18}


def read_gguf_config(path: Path) -> dict[str, Any]:
    """A file's sizes under the keys of Hugging Face's config.json.

    Raises:
        CheckpointError: a damaged file, or an architecture that is not read.
    """
    file = open_gguf(path)
    architecture = str(file.get("general.architecture"))
    if architecture not in ARCHITECTURES:
        read = ", ".join(ARCHITECTURES)
        raise CheckpointError(f"{path}: GGUF files of architecture '{architecture}' are not read", f"read are {read}")
    if file.get(f"{architecture}.expert_count"):
        raise CheckpointError(f"{path}: GGUF files with experts are not read", "give the safetensors checkpoint")
    values = {ours: file.get(f"{architecture}.{theirs}") for ours, theirs in SIZES.items()}
    values = {key: value for key, value in values.items() if value is not None}
    embedding = file.tensor("token_embd.weight")
    if embedding is None:
        raise CheckpointError(f"{path} holds no token_embd.weight", HINT)
    windowed = architecture == "llama" and "sliding_window" in values
    ends = [file.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    values |= {
        "architectures": ["MistralForCausalLM" if windowed else ARCHITECTURES[architecture]],
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": file.tensor("output.weight") is None,
        "qkv_bias": file.tensor("blk.0.attn_q.bias") is not None,
        "rotary_neighbours": architecture == "llama",
        "eos_token_id": list(dict.fromkeys(end for end in ends if end is not None)) or None,
    }
    rotated, head = file.get(f"{architecture}.rope.dimension_count"), values.get("head_dim")
    head = head or values.get("hidden_size", 0) // max(values.get("num_attention_heads", 1), 1)
    if rotated and rotated != head:
        values["partial_rotary_factor"] = rotated / head
    return values | _scaling(file, architecture, values)


def _scaling(file: GgufFile, architecture: str, values: Mapping[str, Any]) -> dict[str, Any]:
    kind = file.get(f"{architecture}.rope.scaling.type", "none")
    factor = file.get(f"{architecture}.rope.scaling.factor")
    original = file.get(f"{architecture}.rope.scaling.original_context_length")
    if kind in ("linear", "yarn"):
        scaling = {"rope_type": kind, "factor": factor}
        if original:
            scaling["original_max_position_embeddings"] = original
        return {"rope_scaling": scaling}
    if kind != "none":
        raise CheckpointError(f"{file.path}: rope scaling '{kind}' of GGUF is not read", "read are linear and yarn")
    stored = file.tensor(FACTORS)
    if stored is None:
        return {}
    values_of = np.empty(stored.shape, np.float32)
    _tensor(stored, file.path).read_into(values_of)
    factors = [float(value) for value in values_of.reshape(-1)]
    length = values.get("max_position_embeddings")
    return {
        "rope_scaling": {
            # Factors whatever the length, and no other magnitude.
            "rope_type": "longrope",
            "short_factor": factors,
            "long_factor": factors,
            "attention_factor": 1.0,
            "original_max_position_embeddings": length,
        }
    }


def read_gguf_tensors(path: Path) -> Checkpoint:
    """The tensors of a file, under Hugging Face's names.

    Raises:
        CheckpointError: a damaged file, or a type that nobody can dequantise.
    """
    file = open_gguf(path)
    return {_name(tensor.name): _tensor(tensor, path) for tensor in file.tensors if tensor.name != FACTORS}


def _name(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if layer and layer[2] in LAYER_NAMES:
        return f"model.layers.{layer[1]}.{LAYER_NAMES[layer[2]]}.{kind}"
    return f"{NAMES[stem]}.{kind}" if stem in NAMES else name


def _tensor(stored: GgufTensor, path: Path) -> StoredTensor:
    kind, name, shape = stored.kind_name, _name(stored.name), stored.shape
    segments = (Segment(path, stored.offset, stored.size),)
    if kind in PLAIN:
        return StoredTensor(name, PLAIN[kind], shape, segments)
    if len(shape) != 2:
        raise CheckpointError(f"{path}: tensor '{stored.name}' of type {kind} is {list(shape)}", "it must be a matrix")
    data = StoredTensor(name, "uint8", (shape[0], stored.size // max(shape[0], 1)), segments)
    if kind not in BLOCKS:
        source = _OtherBlocks(data, stored.kind)
        return _quantised(name, shape, segments, source, None, kind)
    blocks = _Blocks(data, kind, shape[1])
    lowest, highest = (-8, 7) if kind == "Q4_0" else (-128, 127)
    form = narrowest_form(lowest, highest, blocks.groups, np.zeros((0, 0), np.float32))
    return _quantised(name, shape, segments, blocks, form, kind)


def _quantised(
    name: str, shape: tuple[int, ...], segments: tuple[Segment, ...], source: Any, form: Any, kind: str
) -> QuantisedTensor:
    scheme = f"GGUF {kind}"
    return QuantisedTensor(
        name=name, dtype="float32", shape=shape, segments=segments, source=source, form=form, scheme=scheme
    )


def _raw(data: StoredTensor, begin: int, end: int) -> np.ndarray:
    raw = np.empty((end - begin, data.shape[1]), np.uint8)
    data.rows(begin, end).read_bytes_into(raw)
    return raw


@dataclass(frozen=True)
class _Blocks:
    """Rows of Q8_0 or Q4_0; `data` is their bytes [rows, bytes of a row]."""

    data: StoredTensor
    kind: str
    columns: int

    @property
    def groups(self) -> np.ndarray:
        return np.arange(self.columns) // GROUP

    def values(self, begin: int, end: int) -> np.ndarray:
        return self.codes(begin, end).values()

    def codes(self, begin: int, end: int) -> Codes:
        blocks = _raw(self.data, begin, end).reshape(end - begin, -1, BLOCKS[self.kind])
        scales = np.ascontiguousarray(blocks[:, :, :2]).view(np.float16)[:, :, 0].astype(np.float32)
        q = blocks[:, :, 2:]
        if self.kind == "Q4_0":
            q = np.concatenate([q & 15, q >> 4], axis=2).astype(np.int16) - 8
        else:
            q = np.ascontiguousarray(q).view(np.int8).astype(np.int16)
        return Codes(q.reshape(end - begin, -1), scales, self.groups)


@dataclass(frozen=True)
class _OtherBlocks:
    """Rows of a type that the package dequantises; `data` is their bytes."""

    data: StoredTensor
    kind: int

    def values(self, begin: int, end: int) -> np.ndarray:
        import gguf

        kind = gguf.GGMLQuantizationType(self.kind)
        try:
            return np.asarray(gguf.dequantize(_raw(self.data, begin, end), kind), np.float32)
        except NotImplementedError:
            raise CheckpointError(f"the package gguf cannot dequantise {kind.name}", "give another file") from None
