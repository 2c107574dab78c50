"""Which tensors a checkpoint must hold for a model, and where each goes in the network's parameters.

Knows names and shapes only; never imports mindspore, so that a checkpoint that does not fit is refused at once.
Hugging Face's names are kept. The network fuses q/k/v and gate/up into one matrix each, because one large product is
faster than two or three small ones; a tensor's place says which rows of the fused parameter it fills.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from inference.models.config import ModelConfig


@dataclass(frozen=True)
class TensorPlace:
    """One checkpoint tensor: its name and shape, and the rows of the network's parameter that it fills."""

    name: str
    shape: tuple[int, ...]
    parameter: str
    first_row: int = 0


EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
# Buffers that older exporters saved beside the weights; they follow from the config.
DERIVED = re.compile(r"\.rotary_emb\.(inv_freq|cos_cached|sin_cached)$|\.freqs_mgr\.")

# MindFormers' Llama names, as its convert_weight writes them, and what they are called here.
MINDFORMERS_PARTS = (
    ("tok_embeddings.embedding_weight", "embed_tokens.weight"),
    ("attention.wq.", "self_attn.q_proj."),
    ("attention.wk.", "self_attn.k_proj."),
    ("attention.wv.", "self_attn.v_proj."),
    ("attention.wo.", "self_attn.o_proj."),
    ("attention.q_norm.", "self_attn.q_norm."),
    ("attention.k_norm.", "self_attn.k_norm."),
    ("feed_forward.w1.", "mlp.gate_proj."),
    ("feed_forward.w2.", "mlp.down_proj."),
    ("feed_forward.w3.", "mlp.up_proj."),
    ("attention_norm.", "input_layernorm."),
    ("ffn_norm.", "post_attention_layernorm."),
    ("norm_out.", "norm."),
)
# Those of its newer style, of which a name may have several.
MINDFORMERS_MCORE_PARTS = (
    ("embedding.word_embeddings.", "model.embed_tokens."),
    ("decoder.final_layernorm.", "model.norm."),
    ("output_layer.", "lm_head."),
    ("decoder.layers.", "model.layers."),
    (".self_attention.linear_q.", ".self_attn.q_proj."),
    (".self_attention.linear_k.", ".self_attn.k_proj."),
    (".self_attention.linear_v.", ".self_attn.v_proj."),
    (".self_attention.linear_proj.", ".self_attn.o_proj."),
    (".self_attention.q_layernorm.", ".self_attn.q_norm."),
    (".self_attention.k_layernorm.", ".self_attn.k_norm."),
    (".mlp.gating.", ".mlp.gate_proj."),
    (".mlp.hidden.", ".mlp.up_proj."),
    (".mlp.linear_fc2.", ".mlp.down_proj."),
    (".pre_mlp_layernorm.", ".post_attention_layernorm."),
)


def hugging_face_name(name: str) -> str:
    """A checkpoint's tensor name in Hugging Face's spelling, whether it was MindFormers' or already that."""
    if name.startswith(("decoder.layers.", "decoder.final_layernorm.", "embedding.", "output_layer.")):
        for theirs, ours in MINDFORMERS_MCORE_PARTS:
            name = name.replace(theirs, ours)
        return name
    for theirs, ours in MINDFORMERS_PARTS:
        if theirs in name:
            return name.replace(theirs, ours)
    return name


def tensor_places(config: ModelConfig) -> list[TensorPlace]:
    """Every tensor that a checkpoint of this model holds, in the order of the layers."""
    places = [TensorPlace(EMBEDDING, (config.vocab_size, config.hidden_size), EMBEDDING)]
    for layer in range(config.num_layers):
        places.extend(_layer_places(config, f"model.layers.{layer}."))
    places.append(TensorPlace("model.norm.weight", (config.hidden_size,), "model.norm.weight"))
    if not config.tie_embeddings:
        places.append(TensorPlace(HEAD, (config.vocab_size, config.hidden_size), HEAD))
    return places


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the network's parameters: the checkpoint's tensors, those that are fused stacked by rows."""
    shapes: dict[str, tuple[int, ...]] = {}
    for place in tensor_places(config):
        rows = place.first_row + place.shape[0]
        shapes[place.parameter] = (rows, *place.shape[1:])
    return shapes


def _layer_places(config: ModelConfig, prefix: str) -> Iterator[TensorPlace]:
    hidden, width = config.hidden_size, config.intermediate_size
    query, kv = config.query_size, config.kv_size
    attention, mlp = f"{prefix}self_attn.", f"{prefix}mlp."
    yield _whole(f"{prefix}input_layernorm.weight", (hidden,))
    qkv = (("q_proj", query), ("k_proj", kv), ("v_proj", kv))
    yield from _fused(attention, "qkv_proj.weight", [(f"{n}.weight", (rows, hidden)) for n, rows in qkv])
    if config.qkv_bias:
        yield from _fused(attention, "qkv_proj.bias", [(f"{n}.bias", (rows,)) for n, rows in qkv])
    if config.qk_norm:
        yield _whole(f"{attention}q_norm.weight", (config.head_dim,))
        yield _whole(f"{attention}k_norm.weight", (config.head_dim,))
    yield _whole(f"{attention}o_proj.weight", (hidden, query))
    if config.output_bias:
        yield _whole(f"{attention}o_proj.bias", (hidden,))
    yield _whole(f"{prefix}post_attention_layernorm.weight", (hidden,))
    gate_up = (("gate_proj", width), ("up_proj", width))
    yield from _fused(mlp, "gate_up_proj.weight", [(f"{n}.weight", (rows, hidden)) for n, rows in gate_up])
    if config.mlp_bias:
        yield from _fused(mlp, "gate_up_proj.bias", [(f"{n}.bias", (rows,)) for n, rows in gate_up])
    yield _whole(f"{mlp}down_proj.weight", (hidden, width))
    if config.mlp_bias:
        yield _whole(f"{mlp}down_proj.bias", (hidden,))


def _whole(name: str, shape: tuple[int, ...]) -> TensorPlace:
    return TensorPlace(name, shape, name)


def _fused(prefix: str, target: str, parts: list[tuple[str, tuple[int, ...]]]) -> Iterator[TensorPlace]:
    row = 0
    for name, shape in parts:
        yield TensorPlace(prefix + name, shape, prefix + target, row)
        row += shape[0]
