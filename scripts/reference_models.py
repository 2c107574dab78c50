"""Decoder-only families without a transformers class, in plain NumPy, for making the golden files.

Each follows its authors' description, uses the layout of their checkpoints, and shares no code with the package. Slow,
float64, no cache. A model is its config and its tensors by name; it only computes `logits`.

    InternLM2   arXiv:2403.17297: wqkv holds, for each key/value head, its query heads, its key and its value
    ChatGLM     github.com/THUDM/ChatGLM2-6B and ChatGLM3: fused q/k/v with a bias; half of each head is rotated, by
                neighboring pairs
    Baichuan2   arXiv:2309.10305: W_pack is q, k, v; the output head's rows have length 1; 7B is rotated, 13B has ALiBi
    TeleChat2   arXiv:2401.03804, github.com/Tele-AI/TeleChat2: key_value holds, for each head, its key and its value
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Tensors = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Reference:
    """One model: the keys of its config.json, and its tensors."""

    config: Mapping[str, Any]
    tensors: Tensors

    def logits(self, tokens: list[int]) -> np.ndarray:
        """float32 [L, vocabulary]."""
        tensors = {name: tensor.astype(np.float64) for name, tensor in self.tensors.items()}
        return MODELS[self.config["model_type"]].logits(self.config, tensors, np.array(tokens)).astype(np.float32)


@dataclass(frozen=True)
class Model:
    """A family: the shapes of its tensors, and its logits."""

    shapes: Callable[[Mapping[str, Any]], dict[str, tuple[int, ...]]]
    logits: Callable[[Mapping[str, Any], Tensors, np.ndarray], np.ndarray]


# --- shared parts ----------------------------------------------------------------------------------------------------


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return weight * x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def angles(length: int, size: int, base: float) -> np.ndarray:
    """[L, size / 2]"""
    return np.outer(np.arange(length), base ** (-np.arange(0, size, 2) / size))


def rotate_halves(head: np.ndarray, base: float) -> np.ndarray:
    """head [L, D], element i paired with i + D / 2."""
    turn = angles(len(head), head.shape[1], base)
    first, second = np.split(head, 2, axis=1)
    cos, sin = np.cos(turn), np.sin(turn)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], 1)


def rotate_neighbors_of_first_half(head: np.ndarray, base: float) -> np.ndarray:
    """head [L, D]: rotates elements 2i and 2i + 1 below D / 2; the others stay unchanged."""
    size = head.shape[1] // 2
    turn = angles(len(head), size, base)
    out = head.copy()
    even, odd = head[:, 0:size:2], head[:, 1:size:2]
    out[:, 0:size:2] = even * np.cos(turn) - odd * np.sin(turn)
    out[:, 1:size:2] = odd * np.cos(turn) + even * np.sin(turn)
    return out


def attend(query: np.ndarray, key: np.ndarray, value: np.ndarray, slope: float = 0.0) -> np.ndarray:
    """Attention of one head, [L, D] each; `slope` is subtracted from a score per position of distance (ALiBi)."""
    at = np.arange(len(query))
    distance = at[:, None] - at
    scores = query @ key.T / np.sqrt(query.shape[1]) - slope * distance
    return softmax(np.where(distance >= 0, scores, -np.inf)) @ value


def shared_heads(count: int, groups: int) -> list[int]:
    """Return the key/value head of each query head."""
    return [head * groups // count for head in range(count)]


# --- InternLM2 -------------------------------------------------------------------------------------------------------


def internlm2_shapes(c: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, width = c["hidden_size"], c["intermediate_size"]
    rows = hidden + 2 * hidden // c["num_attention_heads"] * c["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {"model.tok_embeddings.weight": (c["vocab_size"], hidden)}
    for i in range(c["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        shapes |= {
            f"{layer}attention_norm.weight": (hidden,),
            f"{layer}attention.wqkv.weight": (rows, hidden),
            f"{layer}attention.wo.weight": (hidden, hidden),
            f"{layer}ffn_norm.weight": (hidden,),
            f"{layer}feed_forward.w1.weight": (width, hidden),
            f"{layer}feed_forward.w3.weight": (width, hidden),
            f"{layer}feed_forward.w2.weight": (hidden, width),
        }
    return shapes | {"model.norm.weight": (hidden,), "output.weight": (c["vocab_size"], hidden)}


def internlm2_logits(c: Mapping[str, Any], w: Tensors, tokens: np.ndarray) -> np.ndarray:
    heads, groups, eps = c["num_attention_heads"], c["num_key_value_heads"], c["rms_norm_eps"]
    size, share = c["hidden_size"] // heads, heads // groups
    x = w["model.tok_embeddings.weight"][tokens]
    for i in range(c["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        normed = rms_norm(x, w[f"{layer}attention_norm.weight"], eps)
        qkv = (normed @ w[f"{layer}attention.wqkv.weight"].T).reshape(len(x), groups, share + 2, size)
        out = []
        for group in range(groups):
            key = rotate_halves(qkv[:, group, share], c["rope_theta"])
            for query in range(share):
                turned = rotate_halves(qkv[:, group, query], c["rope_theta"])
                out.append(attend(turned, key, qkv[:, group, share + 1]))
        x = x + np.concatenate(out, 1) @ w[f"{layer}attention.wo.weight"].T
        normed = rms_norm(x, w[f"{layer}ffn_norm.weight"], eps)
        gate, up = (normed @ w[f"{layer}feed_forward.{name}.weight"].T for name in ("w1", "w3"))
        x = x + (silu(gate) * up) @ w[f"{layer}feed_forward.w2.weight"].T
    return rms_norm(x, w["model.norm.weight"], eps) @ w["output.weight"].T


# --- ChatGLM2, ChatGLM3, GLM-4 9B ------------------------------------------------------------------------------------


def chatglm_shapes(c: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, width, size = c["hidden_size"], c["ffn_hidden_size"], c["kv_channels"]
    query = c["num_attention_heads"] * size
    rows = query + 2 * c["multi_query_group_num"] * size
    embedding = (c["padded_vocab_size"], hidden)
    shapes: dict[str, tuple[int, ...]] = {"transformer.embedding.word_embeddings.weight": embedding}
    for i in range(c["num_layers"]):
        layer = f"transformer.encoder.layers.{i}."
        shapes |= {
            f"{layer}input_layernorm.weight": (hidden,),
            f"{layer}self_attention.query_key_value.weight": (rows, hidden),
            f"{layer}self_attention.query_key_value.bias": (rows,),
            f"{layer}self_attention.dense.weight": (hidden, query),
            f"{layer}post_attention_layernorm.weight": (hidden,),
            f"{layer}mlp.dense_h_to_4h.weight": (2 * width, hidden),
            f"{layer}mlp.dense_4h_to_h.weight": (hidden, width),
        }
    shapes["transformer.encoder.final_layernorm.weight"] = (hidden,)
    return shapes | {"transformer.output_layer.weight": embedding}


def chatglm_logits(c: Mapping[str, Any], w: Tensors, tokens: np.ndarray) -> np.ndarray:
    heads, groups, size = c["num_attention_heads"], c["multi_query_group_num"], c["kv_channels"]
    eps, base = c["layernorm_epsilon"], 10000.0 * c.get("rope_ratio", 1)
    x = w["transformer.embedding.word_embeddings.weight"][tokens]
    for i in range(c["num_layers"]):
        layer = f"transformer.encoder.layers.{i}."
        normed = rms_norm(x, w[f"{layer}input_layernorm.weight"], eps)
        fused = f"{layer}self_attention.query_key_value."
        qkv = normed @ w[f"{fused}weight"].T + w[f"{fused}bias"]
        query, key, value = np.split(qkv, [heads * size, (heads + groups) * size], axis=1)
        out = []
        for head, group in enumerate(shared_heads(heads, groups)):
            mine, theirs = slice(head * size, (head + 1) * size), slice(group * size, (group + 1) * size)
            turned = [rotate_neighbors_of_first_half(y, base) for y in (query[:, mine], key[:, theirs])]
            out.append(attend(*turned, value[:, theirs]))
        x = x + np.concatenate(out, 1) @ w[f"{layer}self_attention.dense.weight"].T
        normed = rms_norm(x, w[f"{layer}post_attention_layernorm.weight"], eps)
        gate, up = np.split(normed @ w[f"{layer}mlp.dense_h_to_4h.weight"].T, 2, axis=1)
        x = x + (silu(gate) * up) @ w[f"{layer}mlp.dense_4h_to_h.weight"].T
    x = rms_norm(x, w["transformer.encoder.final_layernorm.weight"], eps)
    return x @ w["transformer.output_layer.weight"].T


# --- Baichuan2 -------------------------------------------------------------------------------------------------------


def baichuan_shapes(c: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, width = c["hidden_size"], c["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (c["vocab_size"], hidden)}
    for i in range(c["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        shapes |= {
            f"{layer}input_layernorm.weight": (hidden,),
            f"{layer}self_attn.W_pack.weight": (3 * hidden, hidden),
            f"{layer}self_attn.o_proj.weight": (hidden, hidden),
            f"{layer}post_attention_layernorm.weight": (hidden,),
            f"{layer}mlp.gate_proj.weight": (width, hidden),
            f"{layer}mlp.up_proj.weight": (width, hidden),
            f"{layer}mlp.down_proj.weight": (hidden, width),
        }
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (c["vocab_size"], hidden)}


def slopes(heads: int) -> list[float]:
    """Press et al. 2022: 2^(-8 i / n) for a power of two, followed by the odd ones of the next power."""
    power = 1
    while 2 * power <= heads:
        power *= 2
    mine = [2 ** (-8 * i / power) for i in range(1, power + 1)]
    return mine if power == heads else mine + slopes(2 * power)[0::2][: heads - power]


def baichuan_logits(c: Mapping[str, Any], w: Tensors, tokens: np.ndarray) -> np.ndarray:
    heads, eps = c["num_attention_heads"], c["rms_norm_eps"]
    # Only the model with rotary embedding limits the positions.
    is_rotary = "max_position_embeddings" in c
    falls = [0.0] * heads if is_rotary else slopes(heads)
    x = w["model.embed_tokens.weight"][tokens]
    for i in range(c["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        normed = rms_norm(x, w[f"{layer}input_layernorm.weight"], eps)
        packed = normed @ w[f"{layer}self_attn.W_pack.weight"].T
        query, key, value = packed.reshape(len(x), 3, heads, -1).transpose(1, 2, 0, 3)
        if is_rotary:
            query, key = ([rotate_halves(head, 10000.0) for head in part] for part in (query, key))
        out = [attend(*parts) for parts in zip(query, key, value, falls, strict=True)]
        x = x + np.concatenate(out, 1) @ w[f"{layer}self_attn.o_proj.weight"].T
        normed = rms_norm(x, w[f"{layer}post_attention_layernorm.weight"], eps)
        gate, up = (normed @ w[f"{layer}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + (silu(gate) * up) @ w[f"{layer}mlp.down_proj.weight"].T
    head = w["lm_head.weight"]
    head = head / np.linalg.norm(head, axis=1, keepdims=True)
    return rms_norm(x, w["model.norm.weight"], eps) @ head.T


# --- TeleChat2 -------------------------------------------------------------------------------------------------------


def telechat_shapes(c: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, width = c["hidden_size"], c["ffn_hidden_size"]
    rows = 2 * hidden // c["n_head"] * c["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {"transformer.word_embeddings.weight": (c["vocab_size"], hidden)}
    for i in range(c["n_layer"]):
        layer = f"transformer.h.{i}."
        shapes |= {
            f"{layer}input_layernorm.weight": (hidden,),
            f"{layer}self_attention.query.weight": (hidden, hidden),
            f"{layer}self_attention.key_value.weight": (rows, hidden),
            f"{layer}self_attention.dense.weight": (hidden, hidden),
            f"{layer}self_attention.dense.bias": (hidden,),
            f"{layer}post_attention_layernorm.weight": (hidden,),
            f"{layer}mlp.gate_proj.weight": (width, hidden),
            f"{layer}mlp.up_proj.weight": (width, hidden),
            f"{layer}mlp.down_proj.weight": (hidden, width),
            f"{layer}mlp.down_proj.bias": (hidden,),
        }
    return shapes | {"transformer.ln_f.weight": (hidden,), "lm_head.weight": (c["vocab_size"], hidden)}


def telechat_logits(c: Mapping[str, Any], w: Tensors, tokens: np.ndarray) -> np.ndarray:
    heads, groups, eps = c["n_head"], c["num_key_value_heads"], c["layer_norm_epsilon"]
    size = c["hidden_size"] // heads
    # Trained on more than the base length: NTK scaling of the base, for any sequence up to the trained length.
    doublings = np.ceil(np.log2(c["training_seqlen"] / c["base_seqlen"]) + 1)
    base = 10000.0 * max(2**doublings - 1, 1) ** (size / (size - 2))
    x = w["transformer.word_embeddings.weight"][tokens]
    for i in range(c["n_layer"]):
        layer = f"transformer.h.{i}."
        normed = rms_norm(x, w[f"{layer}input_layernorm.weight"], eps)
        query = (normed @ w[f"{layer}self_attention.query.weight"].T).reshape(len(x), heads, size)
        mixed = (normed @ w[f"{layer}self_attention.key_value.weight"].T).reshape(len(x), groups, 2 * size)
        out = []
        for head, group in enumerate(shared_heads(heads, groups)):
            key, value = mixed[:, group, :size], mixed[:, group, size:]
            out.append(attend(rotate_halves(query[:, head], base), rotate_halves(key, base), value))
        dense = f"{layer}self_attention.dense."
        x = x + np.concatenate(out, 1) @ w[f"{dense}weight"].T + w[f"{dense}bias"]
        normed = rms_norm(x, w[f"{layer}post_attention_layernorm.weight"], eps)
        gate, up = (normed @ w[f"{layer}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        down = f"{layer}mlp.down_proj."
        x = x + (silu(gate) * up) @ w[f"{down}weight"].T + w[f"{down}bias"]
    return rms_norm(x, w["transformer.ln_f.weight"], eps) @ w["lm_head.weight"].T


MODELS = {
    "internlm2": Model(internlm2_shapes, internlm2_logits),
    "chatglm": Model(chatglm_shapes, chatglm_logits),
    "baichuan": Model(baichuan_shapes, baichuan_logits),
    "telechat": Model(telechat_shapes, telechat_logits),
}
