"""Map the architectures of GGUF files to Hugging Face: sizes as keys of config.json, and tensor names.

Sources: the specification (github.com/ggml-org/ggml, docs/gguf.md), the constants of the package `gguf`, and what
llama.cpp's converter and loader do with each architecture: which rows they permute, what they add to norms, and what
the loader knows without reading it from the file. `llama` and `internlm2` rotate neighboring pairs of a head, so the
rows of q and k are in that order; the others rotate as Hugging Face's models of the same name do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from inference.checkpoint.gguf_header import HINT, GgufFile
from inference.checkpoint.gguf_t5 import is_gated, t5_config_of, t5_name
from inference.errors import CheckpointError
from inference.files.values import FLAG, LARGEST_FLOAT, TEXT, Reader, integer, number

# The model's config checks these numbers against narrower ranges; 0 means that the model has no such size.
_COUNT, _REAL = integer(0, 2**63 - 1, "an integer"), number(0.0, LARGEST_FLOAT, "a finite number")
# Hugging Face's keys and GGUF's, without its architecture prefix; keys that are not counts have a reader below.
SIZES = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "rope_local_base_freq": "rope.freq_base_swa",
    "head_dim": "attention.key_length",
    "sliding_window": "attention.sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
    "norm_topk_prob": "expert_weights_norm",
    "routed_scaling_factor": "expert_weights_scale",
    "n_group": "expert_group_count",
    "topk_group": "expert_group_used_count",
    "num_nextn_predict_layers": "nextn_predict_layers",
    "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logit_scale": "logit_scale",
}
READERS: dict[str, Reader[Any]] = {
    "rms_norm_eps": _REAL,
    "rope_theta": _REAL,
    "rope_local_base_freq": _REAL,
    "attn_logit_softcapping": _REAL,
    "final_logit_softcapping": _REAL,
    "routed_scaling_factor": _REAL,
    "norm_topk_prob": FLAG,
    "attention_multiplier": _REAL,
    "embedding_multiplier": _REAL,
    "residual_multiplier": _REAL,
    "logit_scale": _REAL,
}
NAMES = {
    "token_embd": "model.embed_tokens",
    "position_embd": "model.embed_positions",
    "output_norm": "model.norm",
    "output": "lm_head",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
    "attn_k_b": "self_attn.k_b_proj",
    "attn_v_b": "self_attn.v_b_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
}
# All experts of a layer in one tensor [experts, out, in]; in the first Mixtral files each expert has its own.
EXPERTS = {"ffn_gate_exps": "gate_proj", "ffn_up_exps": "up_proj", "ffn_down_exps": "down_proj"}
_OWN_EXPERT = re.compile(r"(ffn_(?:gate|up|down))\.(\d+)")
_LAYER = re.compile(r"blk\.(\d+)\.(.+)")
# llama.cpp's value for "no token", as an unsigned number.
NO_TOKEN = 2**32 - 1
CORRECTION = "exp_probs_b"
# Divisors of the rotary frequencies, one for each pair: Llama 3.1 stores one vector of them, Phi-3 two.
FACTORS = "rope_freqs.weight"
SHORT_FACTORS, LONG_FACTORS = "rope_factors_short.weight", "rope_factors_long.weight"
# Gemma has a norm after attention and after feed-forward, besides the one before each.
_GEMMA_NAMES = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
# Models without norms before their sublayers.
_POST_NORMS = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
_GATE_UP = {"ffn_up": "mlp.gate_up_proj"}
_GLM4_NAMES = {**_GATE_UP, "post_attention_norm": "post_self_attn_layernorm", "post_ffw_norm": "post_mlp_layernorm"}
# Names of a layer's tensors whose bias stands for one of queries, keys and values.
_WITH_BIAS = ("attn_q", "attn_qkv", "attn_kv_a_mqa")
# Baichuan 13B has this number of layers, and ALiBi; llama.cpp tells it from 7B in the same way.
LAYERS_WITH_ALIBI = 40
# GGUF's number for a router that scores experts by the sigmoid.
SIGMOID = 2
T5 = "T5ForConditionalGeneration"
# Config keys set here that describe the file and not the model.
GGUF_KEYS = ("rotary_neighbors", "stored_by_gguf")


@dataclass(frozen=True)
class Architecture:
    """What differs between GGUF architectures.

    Args:
        ours: the architecture of Hugging Face's config.json.
        names: names of a layer's tensors that differ from `LAYER_NAMES`.
        neighbors: whether the rows of q and k are in the order of neighboring pairs.
        large: number of layers of the one model size that scales scores by the root of width / heads instead of the
            head size; 0 for none.
        says: config values that llama.cpp's loader knows and the file does not state.
        eps: config.json's key for the norms' epsilon.
    """

    ours: str
    names: Mapping[str, str] = field(default_factory=dict)
    neighbors: bool = False
    large: int = 0
    says: Mapping[str, Any] = field(default_factory=dict)
    eps: str = "rms_norm_eps"


ARCHITECTURES = {
    "llama": Architecture("LlamaForCausalLM", neighbors=True),
    "qwen2": Architecture("Qwen2ForCausalLM"),
    "qwen3": Architecture("Qwen3ForCausalLM"),
    "qwen2moe": Architecture("Qwen2MoeForCausalLM", says={"norm_topk_prob": False}),
    "qwen3moe": Architecture("Qwen3MoeForCausalLM", says={"norm_topk_prob": True}),
    "gemma2": Architecture("Gemma2ForCausalLM", _GEMMA_NAMES, large=46),
    "gemma3": Architecture("Gemma3ForCausalLM", _GEMMA_NAMES, large=62),
    "phi3": Architecture("Phi3ForCausalLM", _GATE_UP),
    "gpt2": Architecture("GPT2LMHeadModel", eps="layer_norm_epsilon"),
    "internlm2": Architecture("InternLM2ForCausalLM", neighbors=True),
    "chatglm": Architecture("ChatGLMForConditionalGeneration", _GATE_UP),
    "glm4": Architecture("Glm4ForCausalLM", _GLM4_NAMES),
    "gemma": Architecture("GemmaForCausalLM"),
    "starcoder2": Architecture("Starcoder2ForCausalLM", eps="norm_epsilon"),
    "ernie4_5": Architecture("Ernie4_5ForCausalLM"),
    "seed_oss": Architecture("SeedOssForCausalLM", {"post_attention_norm": "post_attention_layernorm"}),
    "smollm3": Architecture("SmolLM3ForCausalLM", neighbors=True),
    "granite": Architecture("GraniteForCausalLM", neighbors=True),
    "granitemoe": Architecture("GraniteMoeForCausalLM", neighbors=True, says={"norm_topk_prob": True}),
    "olmo2": Architecture("Olmo2ForCausalLM", _POST_NORMS),
    "exaone4": Architecture("Exaone4ForCausalLM", _POST_NORMS),
    "stablelm": Architecture("StableLmForCausalLM", eps="layer_norm_eps"),
    "hunyuan-dense": Architecture("HunYuanDenseV1ForCausalLM"),
    "phi2": Architecture("PhiForCausalLM", eps="layer_norm_eps"),
    "command-r": Architecture("CohereForCausalLM", eps="layer_norm_eps"),
    "cohere2": Architecture("Cohere2ForCausalLM", eps="layer_norm_eps"),
    "deepseek2": Architecture("DeepseekV2ForCausalLM", says={"norm_topk_prob": False}),
    "baichuan": Architecture("BaichuanForCausalLM", neighbors=True),
    "t5": Architecture(T5),
    "glm4moe": Architecture("Glm4MoeForCausalLM", {"post_attention_norm": "post_attention_layernorm"}),
}


def architecture_of(file: GgufFile) -> tuple[str, Architecture]:
    """Return GGUF's name of a file's architecture, and the architecture.

    Raises:
        CheckpointError: the architecture is not supported.
    """
    name = file.read("general.architecture", TEXT, "")[:80]
    if name not in ARCHITECTURES:
        raise CheckpointError(
            f"{file.path}: GGUF files of architecture '{name}' are not read", f"read are {', '.join(ARCHITECTURES)}"
        )
    return name, ARCHITECTURES[name]


def config_of(file: GgufFile) -> dict[str, Any]:
    """Return a file's sizes under the keys of Hugging Face's config.json.

    Raises:
        CheckpointError: the file is damaged, or its architecture is not supported.
    """
    name, architecture = architecture_of(file)
    values = {ours: file.read(f"{name}.{theirs}", READERS.get(ours, _COUNT), None) for ours, theirs in SIZES.items()}
    values = {key: value for key, value in values.items() if value is False or value not in (None, 0)}
    embedding = file.tensor("token_embd.weight")
    if embedding is None:
        raise CheckpointError(f"{file.path} holds no token_embd.weight", HINT)
    ends = [file.read(f"tokenizer.ggml.{end}_token_id", _COUNT, NO_TOKEN) for end in ("eos", "eot", "eom")]
    if name == "t5":
        values = t5_config_of(file)
    values = {
        **architecture.says,
        **values,
        "architectures": [_ours(name, architecture, values)],
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": file.tensor("output.weight") is None,
        "qkv_bias": any(file.tensor(f"blk.0.{part}.bias") is not None for part in _WITH_BIAS),
        "attention_out_bias": file.tensor("blk.0.attn_output.bias") is not None,
        "rotary_neighbors": architecture.neighbors,
        "stored_by_gguf": True,
        "eos_token_id": list(dict.fromkeys(end for end in ends if end != NO_TOKEN)) or None,
    }
    if name == "t5":
        return values
    head = values.get("head_dim") or values.get("hidden_size", 0) // max(values.get("num_attention_heads", 1), 1)
    rotated = file.read(f"{name}.rope.dimension_count", _COUNT, 0)
    if rotated and head and rotated != head:
        values["partial_rotary_factor"] = rotated / head
    if architecture.large:
        is_large = values.get("num_hidden_layers") == architecture.large
        whole = values.get("hidden_size", 0) // max(values.get("num_attention_heads", 1), 1)
        values["query_pre_attn_scalar"] = whole if is_large else head
    if architecture.eps != "rms_norm_eps":
        values.pop("rms_norm_eps", None)
        values[architecture.eps] = file.read(f"{name}.attention.layer_norm_epsilon", _REAL, 1e-5)
    if name in ("granite", "granitemoe") and "logit_scale" in values:
        # The key is called a scale, and the logits are divided by it.
        values["logits_scaling"] = values.pop("logit_scale")
    if file.tensor("blk.0.ffn_norm.weight") is None and name == "stablelm":
        values["use_parallel_residual"] = True
    if file.tensor("blk.0.attn_q_norm.weight") is not None and name in ("stablelm", "command-r"):
        values["qk_layernorm"] = True
    if name == "deepseek2":
        values |= _latent(file, values)
    if name == "baichuan" and values.get("num_hidden_layers") == LAYERS_WITH_ALIBI:
        values["position_embedding_type"] = "alibi"
    return values | _windows(file, name, values) | _experts(file, name, values) | _scaling(file, name, values)


def _ours(name: str, architecture: Architecture, values: Mapping[str, Any]) -> str:
    """Return Hugging Face's architecture; GGUF's `llama` also stands for Mixtral and Mistral."""
    if name == "llama" and "num_experts" in values:
        return "MixtralForCausalLM"
    return "MistralForCausalLM" if name == "llama" and "sliding_window" in values else architecture.ours


def _latent(file: GgufFile, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config values of DeepSeek's latent attention and of its experts.

    Newer files describe the cached vector as one key/value head, and add the sizes of the heads under `_mla`.
    """

    def size(name: str, default: int = 0) -> int:
        return file.read(f"deepseek2.{name}", _COUNT, default)

    rope = size("rope.dimension_count")
    found: dict[str, Any] = {
        "kv_lora_rank": size("attention.kv_lora_rank") or None,
        "q_lora_rank": size("attention.q_lora_rank") or None,
        "qk_rope_head_dim": rope or None,
        "qk_nope_head_dim": size("attention.key_length_mla", size("attention.key_length")) - rope,
        "v_head_dim": size("attention.value_length_mla", size("attention.value_length")) or None,
        "num_key_value_heads": values.get("num_attention_heads"),
        "head_dim": None,
        "partial_rotary_factor": None,
    }
    # 2 stands for the sigmoid, which only V3 has.
    if size("expert_gating_func") == SIGMOID or file.tensor(
        f"blk.{size('leading_dense_block_count')}.{CORRECTION}.bias"
    ):
        return found | {"architectures": ["DeepseekV3ForCausalLM"]}
    return found | {"topk_method": "group_limited_greedy" if values.get("n_group", 1) > 1 else "greedy"}


def _windows(file: GgufFile, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return which layers have a window, if the file states it for each layer."""
    stated = file.get(f"{name}.attention.sliding_window_pattern")
    if not isinstance(stated, list) or "sliding_window" not in values:
        return {}
    return {"layer_types": ["sliding_attention" if has_window else "full_attention" for has_window in stated]}


def _experts(file: GgufFile, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config values of the experts that only the file's tensors show."""
    if "num_experts" not in values:
        return {}
    layers = values.get("num_hidden_layers", 0) - values.get("num_nextn_predict_layers", 0)
    tensors = {tensor.name: tensor for tensor in file.tensors}
    # A layer has several tensors, so a damaged layer count cannot make this list longer than the file.
    layers = min(layers, len(tensors))
    routers = [layer for layer in range(layers) if f"blk.{layer}.ffn_gate_inp.weight" in tensors]
    if not routers:
        raise CheckpointError(f"{file.path} has experts and no blk.*.ffn_gate_inp.weight", HINT)
    found: dict[str, Any] = {
        "num_hidden_layers": layers,
        "mlp_only_layers": [layer for layer in range(layers) if layer not in routers],
    }
    shared = tensors.get(f"blk.{routers[0]}.ffn_up_shexp.weight")
    if shared is not None and f"blk.{routers[0]}.ffn_gate_inp_shexp.weight" in tensors:
        found["shared_expert_intermediate_size"] = shared.shape[0]
    elif shared is not None:
        found["n_shared_experts"] = file.read(f"{name}.expert_shared_count", _COUNT, 1)
    if f"blk.{routers[0]}.attn_q_norm.weight" in tensors:
        found["use_qk_norm"] = True
    return found


def _scaling(file: GgufFile, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    kind = file.read(f"{name}.rope.scaling.type", TEXT, "none")
    factor = file.read(f"{name}.rope.scaling.factor", _REAL, 1.0)
    original = file.read(f"{name}.rope.scaling.original_context_length", _COUNT, 0)
    if kind in ("linear", "yarn"):
        scaling = {"rope_type": kind, "factor": factor}
        if original:
            scaling["original_max_position_embeddings"] = original
        for ours, theirs in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
            scaling[ours] = file.get(f"{name}.rope.scaling.{theirs}")
        # A tenth of DeepSeek's weight of the logarithm; its two weights are equal.
        weight = file.read(f"{name}.rope.scaling.yarn_log_multiplier", _REAL, 0.0) * 10
        if weight:
            scaling |= {"mscale": weight, "mscale_all_dim": weight}
        return {"rope_scaling": {key: value for key, value in scaling.items() if value is not None}}
    if kind not in ("none", "longrope"):
        raise CheckpointError(
            f"{file.path}: rope scaling '{kind}' of GGUF is not read", "read are linear, yarn and longrope"
        )
    # One vector for every length, and the magnitude stays 1.
    short = long = _factors(file, FACTORS)
    magnitude, length = 1.0, values.get("max_position_embeddings")
    if short is None:
        short, long = _factors(file, SHORT_FACTORS), _factors(file, LONG_FACTORS)
        magnitude, length = file.read(f"{name}.rope.scaling.attn_factor", _REAL, 1.0), original or length
    if short is None:
        return {}
    return {
        "rope_scaling": {
            "rope_type": "longrope",
            "short_factor": short,
            "long_factor": long,
            "attention_factor": magnitude,
            "original_max_position_embeddings": length,
        }
    }


def _factors(file: GgufFile, name: str) -> list[float] | None:
    """Read a float32 vector of rotary factors (Phi-3 has two, Llama 3.1 one), or None if the file has none."""
    stored = file.tensor(name)
    if stored is None:
        return None
    if stored.kind_name != "F32":
        raise CheckpointError(f"{stored.path}: tensor '{name}' is of type {stored.kind_name}", "it must be F32")
    with stored.path.open("rb") as source:
        source.seek(stored.offset)
        # Take the shortest decimal that rounds to this float32: it is the number the writer meant.
        return [float(str(value)) for value in np.frombuffer(source.read(stored.size), "<f4")]


def expert_names(name: str) -> str | None:
    """Return the experts' names, with {} for the number, if a tensor holds all experts of a layer; else None."""
    layer = _LAYER.fullmatch(name.removesuffix(".weight"))
    if layer is None or layer[2] not in EXPERTS:
        return None
    return f"model.layers.{layer[1]}.mlp.experts.{{}}.{EXPERTS[layer[2]]}.weight"


def our_name(name: str, architecture: Architecture, file: GgufFile | None = None) -> str:
    """Return a tensor's name in the checkpoints of its family; an unknown name is returned unchanged."""
    if architecture.ours == T5:
        return t5_name(name, file is not None and is_gated(file))
    stem, _, kind = name.rpartition(".")
    layer = _LAYER.fullmatch(stem)
    if layer is None:
        return f"{NAMES[stem]}.{kind}" if stem in NAMES else name
    prefix, part = f"model.layers.{layer[1]}.", layer[2]
    if part == CORRECTION:
        return f"{prefix}mlp.gate.e_score_correction_bias"
    own = _OWN_EXPERT.fullmatch(part)
    if own is not None:
        return f"{prefix}mlp.experts.{own[2]}.{EXPERTS[f'{own[1]}_exps']}.{kind}"
    # Keep the names in multi-token prediction layers, which are recognized by their layer number.
    known = {**LAYER_NAMES, **architecture.names, **({part: part} if part.startswith("nextn.") else {})}
    return f"{prefix}{known[part]}.{kind}" if part in known else name
