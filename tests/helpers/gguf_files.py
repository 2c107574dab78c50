"""Writes models as GGUF files, with the writer of the package `gguf`.

Facts about the format, besides those in `benchmarking.gguf_file`: how llama.cpp's converter treats each architecture.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sentencepiece import SentencePieceProcessor

from benchmarking.gguf_file import Tensors, pairs_from_halves
from inference.tokenizer import Tokenizer
from inference.tokenizer.sentencepiece_tokenizer import CONTROL, NORMAL, USER_DEFINED, _piece_types

ARCHITECTURES = {
    "mistral": "llama",
    "mixtral": "llama",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
    "gemma3_text": "gemma3",
    "glm": "chatglm",
    "glm4_moe": "glm4moe",
}
# By suffix of the name; the first match counts.
NAMES = [
    (r"(embed_tokens|tok_embeddings|word_embeddings|wte)$", "token_embd"),
    (r"wpe$", "position_embd"),
    (r"^(model\.norm|transformer\.(ln_f|encoder\.final_layernorm))$", "output_norm"),
    (r"^(lm_head|output|transformer\.output_layer)$", "output"),
    (r"(input_layernorm|attention_norm|ln_1)$", "attn_norm"),
    (r"self_attn\.q_proj$", "attn_q"),
    (r"self_attn\.k_proj$", "attn_k"),
    (r"self_attn\.v_proj$", "attn_v"),
    (r"(qkv_proj|query_key_value|c_attn)$", "attn_qkv"),
    (r"(self_attn\.o_proj|attention\.wo|self_attention\.dense|attn\.c_proj)$", "attn_output"),
    (r"q_norm$", "attn_q_norm"),
    (r"k_norm$", "attn_k_norm"),
    (r"pre_feedforward_layernorm$", "ffn_norm"),
    (r"post_(feedforward|mlp)_layernorm$", "post_ffw_norm"),
    (r"post_self_attn_layernorm$", "post_attention_norm"),
    (r"(post_attention_layernorm|ffn_norm|ln_2)$", "ffn_norm"),
    (r"shared_experts?\.gate_proj$", "ffn_gate_shexp"),
    (r"shared_experts?\.up_proj$", "ffn_up_shexp"),
    (r"shared_experts?\.down_proj$", "ffn_down_shexp"),
    (r"experts\.\d+\.(gate_proj|w1)$", "ffn_gate_exps"),
    (r"experts\.\d+\.(up_proj|w3)$", "ffn_up_exps"),
    (r"experts\.\d+\.(down_proj|w2)$", "ffn_down_exps"),
    (r"shared_expert_gate$", "ffn_gate_inp_shexp"),
    (r"(mlp|block_sparse_moe)\.gate$", "ffn_gate_inp"),
    (r"(mlp\.gate_proj|feed_forward\.w1)$", "ffn_gate"),
    (r"(gate_up_proj|mlp\.up_proj|feed_forward\.w3|dense_h_to_4h|c_fc)$", "ffn_up"),
    (r"(mlp\.down_proj|feed_forward\.w2|dense_4h_to_h|mlp\.c_proj)$", "ffn_down"),
]
# In these architectures, this name is the norm after attention, and the norm before the feed-forward has another name.
AFTER = {"gemma2": "post_attention_norm", "gemma3": "post_attention_norm", "glm4moe": "post_attention_norm"}


def their_name(name: str, architecture: str = "llama") -> str:
    """Return a tensor's name in GGUF."""
    if name.endswith("e_score_correction_bias"):
        return f"blk.{name.split('.')[2]}.exp_probs_b.bias"
    stem, _, kind = name.rpartition(".")
    found = next(theirs for pattern, theirs in NAMES if re.search(pattern, stem))
    if stem.endswith("post_attention_layernorm"):
        found = AFTER.get(architecture, found)
    layer = re.search(r"\.(\d+)\.", stem)
    return f"blk.{layer[1]}.{found}.{kind}" if layer else f"{found}.{kind}"


def stored(directory: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a directory as float32."""
    found: dict[str, np.ndarray] = {}
    for file in sorted(directory.glob("*.safetensors")):
        tensors = Tensors(file)
        found |= {name: tensors[name] for name in tensors.header}
    return found


def arranged(name: str, array: np.ndarray, architecture: str, config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return a Hugging Face tensor as the converter stores it, by its names in GGUF."""
    heads = config.get("num_attention_heads") or config["n_head"]
    groups = config.get("num_key_value_heads", heads)
    if architecture in ("gemma2", "gemma3") and name.endswith("norm.weight"):
        array = array + 1
    if architecture == "gpt2" and re.search(r"(c_attn|c_proj|c_fc)\.weight$", name):
        array = array.T
    if name.endswith("shared_expert_gate.weight"):
        array = array[0]
    if name.endswith("W_pack.weight"):
        start, (q, k, v) = f"blk.{name.split('.')[2]}.attn", np.split(array, 3)
        turned_parts = pairs_from_halves(q, heads), pairs_from_halves(k, heads), v
        return {f"{start}_{part}.weight": rows for part, rows in zip("qkv", turned_parts, strict=True)}
    if "wqkv" in name:
        by_group = array.reshape(groups, heads // groups + 2, -1, array.shape[1])
        q, k, v = (part.reshape(-1, array.shape[1]) for part in (by_group[:, :-2], by_group[:, -2], by_group[:, -1]))
        start = f"blk.{name.split('.')[2]}.attn"
        return {
            f"{start}_q.weight": pairs_from_halves(q, heads),
            f"{start}_k.weight": pairs_from_halves(k, groups),
            f"{start}_v.weight": v,
        }
    turned = {"q_proj": heads, "k_proj": groups}.get(name.split(".")[-2]) if architecture == "llama" else None
    return {their_name(name, architecture): pairs_from_halves(array, turned) if turned else array}


def write_gguf(
    directory: Path,
    target: Path,
    kinds: str | dict[str, str],
    more: Callable[[Any], None] | None = None,
    parts: int = 0,
) -> dict[str, np.ndarray]:
    """Writes `target`.

    Args:
        kinds: GGML's name for the type of all matrices; or a mapping from suffixes of names to types, "" for the
            others.
        more: writes additional fields.
        parts: number of tensors per part; 0 for one file.

    Returns:
        The values that each tensor represents, by its name in the directory.
    """
    import gguf

    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    architecture = ARCHITECTURES.get(config["model_type"], config["model_type"])
    writer = gguf.GGUFWriter(target, architecture, split_max_tensors=parts)
    _write_sizes(writer, architecture, config)
    if more:
        more(writer)
    values: dict[str, np.ndarray] = {}
    experts: dict[str, list[np.ndarray]] = {}
    found = stored(directory)
    for name in sorted(found, key=lambda name: [int(part) if part.isdigit() else part for part in name.split(".")]):
        array = found[name]
        if config.get("tie_word_embeddings") and name == "lm_head.weight":
            continue
        by_end = kinds if isinstance(kinds, dict) else {"": kinds}
        kind = next(kind for end, kind in by_end.items() if name.endswith(end)) if array.ndim == 2 else "F32"
        # The converter does not quantize routers.
        ggml = gguf.GGMLQuantizationType["F32" if re.search(r"(\.gate|_gate)\.weight$", name) else kind]
        values[name] = gguf.dequantize(gguf.quantize(array, ggml), ggml)
        for theirs, rows in arranged(name, array, architecture, config).items():
            if theirs.endswith("_exps.weight"):
                experts.setdefault(theirs, []).append(rows)
                rows = np.stack(experts[theirs])
                if len(rows) < (
                    config.get("num_local_experts") or config.get("num_experts") or config["n_routed_experts"]
                ):
                    continue
            writer.add_tensor(theirs, gguf.quantize(np.ascontiguousarray(rows), ggml), raw_dtype=ggml)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def _write_sizes(writer: Any, architecture: str, config: dict[str, Any]) -> None:
    def value(*names: str) -> Any:
        return next((config[name] for name in names if config.get(name) is not None), None)

    layers, hidden = value("num_hidden_layers", "num_layers", "n_layer"), value("hidden_size", "n_embd")
    heads = value("num_attention_heads", "n_head")
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    whole = scaling.get("full_attention", scaling)
    writer.add_context_length(value("max_position_embeddings", "seq_length", "n_positions"))
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers + config.get("num_nextn_predict_layers", 0))
    writer.add_feed_forward_length(value("intermediate_size", "ffn_hidden_size") or 4 * hidden)
    writer.add_head_count(heads)
    if architecture == "gpt2":
        writer.add_layer_norm_eps(config["layer_norm_epsilon"])
        return
    writer.add_head_count_kv(value("num_key_value_heads", "multi_query_group_num") or heads)
    writer.add_layer_norm_rms_eps(value("rms_norm_eps", "layernorm_epsilon"))
    writer.add_rope_freq_base(value("rope_theta") or whole.get("rope_theta") or 10000.0 * config.get("rope_ratio", 1))
    head = value("head_dim", "kv_channels") or hidden // heads
    partial = 0.5 if architecture in ("chatglm", "glm4", "glm4moe") else 1.0
    writer.add_rope_dimension_count(
        int(head * (value("partial_rotary_factor") or whole.get("partial_rotary_factor", partial)))
    )
    if head * heads != hidden or architecture in ("gemma2", "gemma3", "qwen3", "qwen3moe"):
        writer.add_key_length(head)
        writer.add_value_length(head)
    if config.get("sliding_window") and config["model_type"] not in ("qwen2", "qwen2_moe", "qwen3_moe"):
        writer.add_sliding_window(config["sliding_window"])
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    if architecture == "gemma3" and whole.get("rope_type") == "linear":
        import gguf

        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(whole["factor"])
        writer.add_float32("gemma3.rope.freq_base_swa", scaling["sliding_attention"]["rope_theta"])
    if whole.get("short_factor"):
        from math import log, sqrt

        original = config["original_max_position_embeddings"]
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(
            sqrt(1 + log(config["max_position_embeddings"] / original) / log(original))
        )
        for name in ("long", "short"):
            writer.add_tensor(f"rope_factors_{name}.weight", np.array(whole[f"{name}_factor"], np.float32))
    if value("num_local_experts", "num_experts", "n_routed_experts"):
        _write_expert_sizes(writer, architecture, config)


def _write_expert_sizes(writer: Any, architecture: str, config: dict[str, Any]) -> None:
    writer.add_expert_count(
        next(config[key] for key in ("num_local_experts", "num_experts", "n_routed_experts") if key in config)
    )
    writer.add_expert_used_count(config["num_experts_per_tok"])
    if architecture != "llama":
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    if architecture == "qwen2moe":
        writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])
    if architecture == "glm4moe":
        writer.add_leading_dense_block_count(config["first_k_dense_replace"])
        writer.add_expert_shared_count(config["n_shared_experts"])
        writer.add_expert_weights_scale(config["routed_scaling_factor"])
        writer.add_expert_weights_norm(config["norm_topk_prob"])
        writer.add_expert_group_count(config["n_group"])
        writer.add_expert_group_used_count(config["topk_group"])
        import gguf

        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
        writer.add_nextn_predict_layers(config.get("num_nextn_predict_layers", 0))


def fields_of(tokenizer: Tokenizer, directory: Path, pre: str | None = None) -> Any:
    """Writes a tokenizer's fields like llama.cpp's converter."""

    def write(writer: Any) -> None:
        tokens = [tokenizer.id_to_token(token_id) or "" for token_id in range(len(tokenizer))]
        added = tokenizer._added  # type: ignore[attr-defined]
        types = [NORMAL] * len(tokens)
        if pre is None:
            model = next(directory.glob("*.model"))
            processor = SentencePieceProcessor(model_file=str(model))
            types[: processor.get_piece_size()] = _piece_types(model.read_bytes())
            scores = [processor.get_score(i) for i in range(processor.get_piece_size())]
            writer.add_tokenizer_model("llama")
            writer.add_token_scores([*scores, *[-1000.0] * (len(tokens) - len(scores))])
        else:
            merges = json.loads((directory / "tokenizer.json").read_text())["model"]["merges"]
            writer.add_tokenizer_model("gpt2")
            writer.add_tokenizer_pre(pre)
            writer.add_token_merges([" ".join(merge) if isinstance(merge, list) else merge for merge in merges])
        for token_id, token in added.items():
            if types[token_id] in (NORMAL, USER_DEFINED):
                types[token_id] = CONTROL if token.special else USER_DEFINED
        writer.add_token_list(tokens)
        writer.add_token_types(types)
        for name in ("bos", "eos", "unk", "pad"):
            token_id = getattr(tokenizer, f"{name}_token_id")
            if token_id is not None:
                getattr(writer, f"add_{name}_token_id")(token_id)
        if tokenizer.config.chat_templates:
            writer.add_chat_template(tokenizer.config.chat_templates["default"])

    return write
