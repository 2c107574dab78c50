"""Makes the golden files of tests/goldens: tiny random Hugging Face models, and transformers' results for
them; for families without a transformers class, the results of reference_models.py.

Needs torch and transformers (extra `dev`); the tests that read the files need neither.

    python scripts/make_goldens.py            # write every case
    python scripts/make_goldens.py qwen3      # write the named cases
    python scripts/make_goldens.py --check    # recompute, compare with the committed files, write nothing

Model cases, `tests/goldens/<case>/`: config.json, generation_config.json, model*.safetensors (with an index
if the case is sharded) and golden.npz. Everything is computed in float32 on weights as stored (16-bit ones
upcast), with eager attention, without a cache, and then checked against a run with a cache. Keys of
golden.npz, for prompt i of length L with vocabulary V:

    source        text             what computed it: transformers, or reference_models.py (no key: transformers)
    seed          int64            seed of weights and prompts
    lengths       int32 [n]        L of each prompt; there are n prompts, i = 0..n-1
    prompt_<i>    int32 [L]        token ids
    positions_<i> int32 [P]        prompt positions whose logits are stored: all for L < 20, else 0, 8, ..., L-1
    logits_<i>    float32 [P, V]   logits at these positions
    greedy_<i>    int32 [64]       64 greedy tokens after the prompt; end-of-sequence is ignored
    margin_<i>    float32 [64]     best minus second best logit at each greedy step, always above 0.001

T5 cases are described in t5_goldens.py, adapters (`lora/<case>`) in lora_goldens.py, tokenizer cases in
tokenizer_goldens.py.

A seed is used only if every margin is wide, no routing is ambiguous and the greedy text is varied, so that a correct
implementation has a unique answer and a wrong one is detected.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from lora_goldens import LORA_CASES, make_lora
from reference_models import MODELS, Reference
from routes import routes_are_clear
from safetensors.numpy import load_file, save_file
from t5_goldens import T5_CASES, make_t5
from tokenizer_goldens import TOKENIZERS, make_tokenizer

ROOT = Path(__file__).resolve().parent.parent / "tests" / "goldens"
# Adapter cases have the names of base models.
LORA = "lora/"
VOCABULARY = 128
LENGTHS = (1, 2, 7, 16, 17, 33, 70)
STEPS = 64
MIN_MARGIN = 2e-3
MIN_DISTINCT = 12
MAX_SEEDS = 400
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    # Wavelengths of head_dim 16 at theta 10000 are 6, 20, 63, ...: one kept, one interpolated, the rest divided.
    "original_max_position_embeddings": 32,
}

# DeepSeek's, scaled to the size of these models.
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 4.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}


@dataclass(frozen=True)
class Case:
    """One model: the `config` of its transformers class, and how its files are written."""

    model_type: str
    config: dict[str, Any]
    form: int = 5  # config.json as transformers 4 or 5 writes it
    dtype: torch.dtype = torch.float32
    shards: bool = False
    written: dict[str, Any] = field(default_factory=dict)  # keys copied into config.json unchanged (form 4)
    dropped: tuple[str, ...] = ()  # keys omitted from config.json (form 4)
    generation: dict[str, Any] = field(default_factory=dict)
    reference: bool = False  # computed by reference_models.py; `config` is then config.json
    # Rope scaling that depends on the sequence length is fixed at this length, as in our models.
    length: int = 0
    # Minimum of distinct tokens in each greedy text. Tied and scaled embeddings give less variety.
    distinct: int = MIN_DISTINCT


def sizes(**changes: Any) -> dict[str, Any]:
    """Return the config values that all cases share, updated with `changes`."""
    common: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return common | changes


def rope(theta: float, **scaling: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta} | scaling


CASES: dict[str, Case] = {
    "llama2_mha": Case(
        "llama",
        sizes(num_key_value_heads=4, rope_parameters=rope(10000.0)),
        form=4,
        dtype=torch.float16,
        dropped=("head_dim",),
    ),
    "llama2_gqa": Case(
        "llama",
        sizes(num_hidden_layers=3, rope_parameters=rope(10000.0)),
        form=4,
        shards=True,
        dropped=("head_dim", "attention_bias", "mlp_bias"),
    ),
    "llama_linear": Case(
        "llama",
        # A large epsilon exposes a norm that uses a constant instead.
        sizes(
            num_key_value_heads=4,
            rms_norm_eps=1e-2,
            rope_parameters=rope(10000.0, rope_type="linear", factor=4.0),
        ),
        form=4,
        written={"rope_scaling": {"type": "linear", "factor": 4.0}},
        dropped=(
            "head_dim",
            "num_key_value_heads",
            "rope_theta",
        ),  # defaults, as in the first Llama files
    ),
    "llama31": Case(
        "llama",
        sizes(hidden_size=64, rope_parameters=rope(10000.0, **LLAMA3_ROPE), eos_token_id=[2, 5, 7]),
        form=4,
        dtype=torch.bfloat16,
        dropped=("head_dim",),
        generation={"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [2, 5, 7]},
    ),
    "llama32_tied": Case(
        "llama",
        sizes(head_dim=16, tie_word_embeddings=True, rope_parameters=rope(10000.0, **LLAMA3_ROPE)),
    ),
    "qwen2": Case(
        "qwen2",
        sizes(rms_norm_eps=1e-6, rope_parameters=rope(1000000.0)),
        form=4,
        # Written by Qwen2 itself but unused: a reader that applies the window gives different logits.
        written={"sliding_window": 8, "use_sliding_window": False, "max_window_layers": 1},
        dropped=("layer_types", "head_dim"),
    ),
    "qwen2_tied": Case(
        "qwen2",
        sizes(num_key_value_heads=1, rms_norm_eps=1e-6, tie_word_embeddings=True, rope_parameters=rope(10000.0)),
    ),
    "qwen3": Case(
        "qwen3",
        sizes(head_dim=16, rms_norm_eps=1e-6, rope_parameters=rope(1000000.0)),
        generation={
            "do_sample": True,
            "temperature": 0.6,
            "top_k": 20,
            "top_p": 0.95,
            "eos_token_id": [2, 3],
        },
    ),
    "qwen3_tied": Case(
        "qwen3",
        sizes(head_dim=12, rms_norm_eps=1e-6, tie_word_embeddings=True, rope_parameters=rope(10000.0)),
        form=4,
        dtype=torch.bfloat16,
        dropped=("layer_types",),
    ),
    "mistral_window": Case(
        "mistral",
        sizes(sliding_window=12, rope_parameters=rope(10000.0)),
        form=4,
        dropped=("head_dim",),
    ),
    "mistral_null": Case(
        "mistral",
        sizes(sliding_window=None, head_dim=16, rope_parameters=rope(1000000.0)),
    ),
    "mixtral": Case(
        "mixtral",
        sizes(
            intermediate_size=40,
            num_local_experts=4,
            num_experts_per_tok=2,
            sliding_window=None,
            rope_parameters=rope(1000000.0),
        ),
        form=4,
        dtype=torch.bfloat16,
        dropped=("head_dim",),
    ),
    "qwen2_moe": Case(
        "qwen2_moe",
        sizes(
            num_hidden_layers=3,
            num_experts=6,
            num_experts_per_tok=2,
            moe_intermediate_size=20,
            shared_expert_intermediate_size=36,
            norm_topk_prob=False,
            decoder_sparse_step=2,  # only the second layer
            rope_parameters=rope(10000.0),
        ),
    ),
    "glm4_moe": Case(
        "glm4_moe",
        sizes(
            head_dim=16,
            num_hidden_layers=2,
            n_routed_experts=6,
            num_experts_per_tok=2,
            moe_intermediate_size=20,
            n_shared_experts=1,
            n_group=2,
            topk_group=1,
            routed_scaling_factor=2.5,
            first_k_dense_replace=1,
            use_qk_norm=True,
            attention_bias=True,
            rope_parameters=rope(10000.0, partial_rotary_factor=0.5),
        ),
        form=4,
        dtype=torch.bfloat16,
    ),
    # Like DeepSeek-V2-Lite: uncompressed queries, greedy expert selection.
    "deepseek_v2_lite": Case(
        "deepseek_v2",
        sizes(
            num_key_value_heads=4,
            q_lora_rank=None,
            kv_lora_rank=20,
            qk_nope_head_dim=10,
            qk_rope_head_dim=6,
            v_head_dim=12,
            n_routed_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=20,
            n_shared_experts=1,
            first_k_dense_replace=1,
            rope_parameters=rope(10000.0),
        ),
    ),
    "deepseek_v2": Case(
        "deepseek_v2",
        sizes(
            num_key_value_heads=4,
            q_lora_rank=24,
            kv_lora_rank=20,
            qk_nope_head_dim=10,
            qk_rope_head_dim=6,
            v_head_dim=12,
            n_routed_experts=6,
            num_experts_per_tok=3,
            moe_intermediate_size=20,
            n_shared_experts=2,
            topk_method="group_limited_greedy",
            n_group=3,
            topk_group=2,
            routed_scaling_factor=1.5,
            attention_bias=True,
            rope_parameters=rope(10000.0, **YARN),
        ),
        dtype=torch.bfloat16,
    ),
    "deepseek_v3": Case(
        "deepseek_v3",
        sizes(
            num_key_value_heads=4,
            q_lora_rank=24,
            kv_lora_rank=16,
            qk_nope_head_dim=8,
            qk_rope_head_dim=8,
            v_head_dim=12,
            n_routed_experts=8,
            num_experts_per_tok=3,
            moe_intermediate_size=20,
            n_shared_experts=1,
            n_group=4,
            topk_group=2,
            routed_scaling_factor=2.5,
            first_k_dense_replace=1,
            num_hidden_layers=3,
            rope_parameters=rope(10000.0, **YARN),
        ),
        form=4,
        dtype=torch.bfloat16,
    ),
    "qwen3_moe": Case(
        "qwen3_moe",
        sizes(
            head_dim=16,
            num_hidden_layers=3,
            num_experts=8,
            num_experts_per_tok=3,
            moe_intermediate_size=20,
            norm_topk_prob=True,
            mlp_only_layers=[1],
            rope_parameters=rope(1000000.0),
        ),
        form=4,
        dtype=torch.bfloat16,
        written={"num_experts": 8},
        dropped=("num_local_experts",),
    ),
}


LONGROPE = {
    "rope_type": "longrope",
    # Three quarters of a head of 16 are rotated: 6 pairs.
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.1, 1.2, 1.5, 1.7, 2.0],
    "long_factor": [1.0, 1.5, 2.0, 4.0, 6.0, 8.0],
}
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 24, "hidden_activation": "gelu_pytorch_tanh"}
GEMMA |= {"tie_word_embeddings": True, "rms_norm_eps": 1e-6, "num_hidden_layers": 3, "sliding_window": 12}
REFERENCE = {"vocab_size": 128, "hidden_size": 64, "torch_dtype": "float32", "bos_token_id": 1, "eos_token_id": 2}
CASES |= {
    "glm": Case(
        "glm",
        sizes(
            pad_token_id=0, head_dim=16, attention_bias=True, rope_parameters=rope(10000.0, partial_rotary_factor=0.5)
        ),
    ),
    "glm4": Case(
        "glm4",
        sizes(
            pad_token_id=0,
            head_dim=16,
            num_hidden_layers=3,
            rms_norm_eps=1.5625e-07,
            attention_bias=False,
            rope_parameters=rope(10000.0, partial_rotary_factor=0.5),
        ),
        form=4,
        dtype=torch.bfloat16,
        written={"partial_rotary_factor": 0.5},
    ),
    "gemma": Case(
        "gemma",
        sizes(head_dim=16, hidden_act="gelu_pytorch_tanh", tie_word_embeddings=True, rope_parameters=rope(10000.0)),
        form=4,
        dropped=("tie_word_embeddings",),
        distinct=4,
    ),
    "starcoder2": Case(
        "starcoder2",
        sizes(
            hidden_act="gelu_pytorch_tanh",
            use_bias=True,
            norm_epsilon=1e-5,
            sliding_window=12,
            tie_word_embeddings=True,
            rope_parameters=rope(10000.0),
        ),
        form=4,
        distinct=4,
    ),
    "seed_oss": Case(
        "seed_oss",
        sizes(head_dim=16, attention_bias=True, attention_out_bias=False, rope_parameters=rope(10000.0)),
    ),
    "smollm3": Case(
        "smollm3",
        sizes(
            num_hidden_layers=4,
            pad_token_id=0,
            no_rope_layers=[1, 1, 1, 0],
            tie_word_embeddings=True,
            rope_parameters=rope(10000.0),
        ),
        form=4,
        distinct=4,
    ),
    "granite": Case(
        "granite",
        sizes(
            embedding_multiplier=12.0,
            residual_multiplier=0.22,
            attention_multiplier=0.25,
            logits_scaling=2.0,
            rope_parameters=rope(10000.0),
        ),
        form=4,
        distinct=4,
    ),
    "granitemoe": Case(
        "granitemoe",
        sizes(
            intermediate_size=40,
            num_local_experts=6,
            num_experts_per_tok=3,
            embedding_multiplier=12.0,
            residual_multiplier=0.22,
            attention_multiplier=0.25,
            logits_scaling=2.0,
            rope_parameters=rope(10000.0),
        ),
        form=4,
        distinct=4,
    ),
    "olmo2": Case("olmo2", sizes(pad_token_id=0, rope_parameters=rope(10000.0)), distinct=4),
    "exaone4": Case(
        "exaone4",
        sizes(
            num_hidden_layers=4,
            hidden_size=64,
            sliding_window=12,
            sliding_window_pattern=3,
            rope_parameters=rope(10000.0),
        ),
        form=4,
        dropped=("layer_types",),
        distinct=4,
    ),
    "stablelm": Case(
        "stablelm",
        sizes(
            hidden_size=64,
            use_qkv_bias=True,
            layer_norm_eps=1e-5,
            rope_parameters=rope(10000.0, partial_rotary_factor=0.25),
        ),
        form=4,
        written={"partial_rotary_factor": 0.25},
    ),
    "hunyuan": Case(
        "hunyuan_v1_dense",
        sizes(head_dim=16, rope_parameters=rope(10000.0, rope_type="dynamic", alpha=50.0, factor=1.0)),
    ),
    "ministral": Case(
        "ministral",
        sizes(
            head_dim=12,
            num_hidden_layers=3,
            sliding_window=12,
            layer_types=["full_attention", "sliding_attention", "sliding_attention"],
            rope_parameters=rope(10000.0),
        ),
    ),
    "phi": Case(
        "phi",
        sizes(
            hidden_size=64,
            intermediate_size=256,
            num_key_value_heads=4,
            layer_norm_eps=1e-5,
            hidden_act="gelu_new",
            rope_parameters=rope(10000.0, partial_rotary_factor=0.5),
        ),
        form=4,
        dtype=torch.float16,
        written={"partial_rotary_factor": 0.5},
    ),
    "cohere": Case(
        "cohere",
        sizes(
            pad_token_id=0,
            layer_norm_eps=1e-5,
            logit_scale=2.0,
            tie_word_embeddings=True,
            rope_parameters=rope(10000.0),
        ),
        form=4,
        distinct=4,
    ),
    "cohere2": Case(
        "cohere2",
        sizes(
            num_hidden_layers=4,
            pad_token_id=0,
            layer_norm_eps=1e-5,
            logit_scale=2.0,
            sliding_window=12,
            tie_word_embeddings=True,
            layer_types=["sliding_attention"] * 3 + ["full_attention"],
            rope_parameters=rope(10000.0),
        ),
        distinct=4,
    ),
    "ernie4_5": Case(
        "ernie4_5",
        sizes(head_dim=16, use_bias=False, tie_word_embeddings=True, rope_parameters=rope(10000.0)),
        form=4,
        distinct=4,
    ),
    "gemma2": Case(
        "gemma2",
        sizes(
            **GEMMA,
            attn_logit_softcapping=3.0,
            final_logit_softcapping=20.0,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            rope_parameters=rope(10000.0),
        ),
        form=4,
        dropped=("layer_types", "tie_word_embeddings"),
        distinct=4,
    ),
    "gemma3": Case(
        "gemma3_text",
        sizes(
            **GEMMA,
            layer_types=["sliding_attention", "sliding_attention", "full_attention"],
            rope_parameters={
                "sliding_attention": rope(100.0),
                "full_attention": rope(100000.0, rope_type="linear", factor=4.0),
            },
        ),
        distinct=4,
    ),
    "phi3": Case("phi3", sizes(pad_token_id=0, head_dim=16, sliding_window=12, rope_parameters=rope(10000.0)), form=4),
    "phi4_mini": Case(
        "phi3",
        sizes(
            pad_token_id=0,
            hidden_size=64,
            num_hidden_layers=2,
            tie_word_embeddings=True,
            original_max_position_embeddings=32,
            rope_parameters=rope(10000.0, **LONGROPE),
        ),
        length=256,
    ),
    "phi3_short": Case(
        "phi3",
        sizes(
            pad_token_id=0,
            hidden_size=64,
            max_position_embeddings=512,
            original_max_position_embeddings=256,
            rope_parameters=rope(10000.0, **LONGROPE),
        ),
        # The short factors apply unless a longer length is requested.
        written={"seq_length": 256},
    ),
    "gpt2": Case(
        "gpt2",
        {"vocab_size": 128, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
        | {"bos_token_id": 1, "eos_token_id": 2},
    ),
    "llama_yarn": Case(
        "llama",
        sizes(
            hidden_size=64,
            rope_parameters=rope(10000.0, rope_type="yarn", factor=8.0, original_max_position_embeddings=32),
        ),
    ),
    "llama_dynamic": Case(
        "llama",
        sizes(
            hidden_size=64, max_position_embeddings=64, rope_parameters=rope(10000.0, rope_type="dynamic", factor=4.0)
        ),
        written={"seq_length": 256},
        length=256,
    ),
    "internlm2": Case(
        "internlm2",
        REFERENCE
        | {"architectures": ["InternLM2ForCausalLM"], "intermediate_size": 48, "num_hidden_layers": 2}
        | {
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "bias": False,
        }
        | {"max_position_embeddings": 256, "tie_word_embeddings": False, "hidden_act": "silu"}
        | {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        reference=True,
    ),
    "chatglm3": Case(
        "chatglm",
        {key: value for key, value in REFERENCE.items() if key != "vocab_size"}
        | {"architectures": ["ChatGLMModel"], "padded_vocab_size": 128, "ffn_hidden_size": 48, "num_layers": 2}
        | {"num_attention_heads": 4, "multi_query_attention": True, "multi_query_group_num": 2, "kv_channels": 16}
        | {"layernorm_epsilon": 1e-5, "add_qkv_bias": True, "add_bias_linear": False, "rmsnorm": True}
        | {"post_layer_norm": True, "apply_residual_connection_post_layernorm": False, "rope_ratio": 50}
        | {"seq_length": 256, "tie_word_embeddings": False},
        reference=True,
    ),
    "baichuan2_7b": Case(
        "baichuan",
        REFERENCE
        | {"architectures": ["BaichuanForCausalLM"], "intermediate_size": 48, "num_hidden_layers": 2}
        | {"num_attention_heads": 4, "rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": False}
        | {"max_position_embeddings": 256, "model_max_length": 256},
        reference=True,
    ),
    "baichuan2_13b": Case(
        "baichuan",
        REFERENCE
        | {"architectures": ["BaichuanForCausalLM"], "intermediate_size": 48, "num_hidden_layers": 2}
        | {"num_attention_heads": 4, "rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": False}
        | {"model_max_length": 256},
        reference=True,
    ),
    "telechat2": Case(
        "telechat",
        REFERENCE
        | {"architectures": ["TelechatForCausalLM"], "ffn_hidden_size": 48, "n_layer": 2, "n_head": 4}
        | {"num_key_value_heads": 2, "layer_norm_epsilon": 1e-5, "training_seqlen": 256, "base_seqlen": 64}
        | {"seq_length": 256, "embed_layernorm": False, "apply_residual_connection_post_layernorm": False}
        | {"hidden_dropout": 0.0, "attention_dropout": 0.0, "tie_word_embeddings": False},
        reference=True,
    ),
}


# --- weights and files
# ------------------------------------------------------------------------------------------


# Embeddings are scaled, or tied to the head: see `less_of_the_token`.
LIKELY_TO_REPEAT = ("gpt2", "smollm3", "granite", "granitemoe", "cohere", "cohere2")


def random_weights(model: torch.nn.Module, rng: np.random.Generator) -> None:
    """Fill `model` so that logits are spread and greedy text is varied: norms about 1, nonzero biases."""
    # Gemma stores its norms minus one; GPT-2's matrices are [in, out].
    kind = model.config.model_type
    is_gemma, inputs = kind.startswith("gemma"), 0 if kind == "gpt2" else -1
    for name, parameter in sorted(model.named_parameters()):
        values = random_values(name, tuple(parameter.shape), rng, inputs)
        if is_gemma or kind in LIKELY_TO_REPEAT:
            values = less_of_the_token(name, values)
        if is_gemma and parameter.ndim == 1:
            values = values - 1.0
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(values.astype(np.float32)))
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(torch.from_numpy((0.2 * rng.standard_normal(buffer.shape)).astype(np.float32)))


def less_of_the_token(name: str, values: np.ndarray) -> np.ndarray:
    """Shrink embeddings and widen the last norm: scaled or tied embeddings can make a model repeat its input."""
    if name.endswith(("embed_tokens.weight", "wte.weight")):
        return values / values.shape[1] ** 0.5
    return 5 * values if name in ("model.norm.weight", "transformer.ln_f.weight") else values


def random_values(name: str, shape: tuple[int, ...], rng: np.random.Generator, inputs: int = -1) -> np.ndarray:
    """Return random values of one parameter; `inputs` is the input axis of a matrix or of several matrices."""
    if name.endswith(".bias"):
        return 0.3 * rng.standard_normal(shape)
    if len(shape) == 1:
        return 1.0 + 0.2 * rng.standard_normal(shape)
    if any(part in name for part in ("embed", "lm_head", "wte", "wpe", "output.weight", "output_layer")):
        return 0.4 * rng.standard_normal(shape)
    return rng.standard_normal(shape) * 1.6 / shape[inputs] ** 0.5


def v4_config(config: dict[str, Any], case: Case) -> dict[str, Any]:
    """Convert `config` from the form of transformers 5 to that of transformers 4."""
    old = dict(config)
    parameters = dict(old.pop("rope_parameters"))
    parameters.pop("partial_rotary_factor", None)
    old["rope_theta"] = parameters.pop("rope_theta")
    old["rope_scaling"] = None if parameters["rope_type"] == "default" else parameters
    old["torch_dtype"] = old.pop("dtype")
    old["transformers_version"] = "4.45.2"
    old.update(case.written)
    return {key: value for key, value in sorted(old.items()) if key not in case.dropped}


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save_reference(case: Case, seed: int, directory: Path) -> None:
    rng = np.random.default_rng(seed)
    shapes = MODELS[case.model_type].shapes(case.config)
    tensors = {name: random_values(name, shape, rng).astype(np.float32) for name, shape in sorted(shapes.items())}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    write_json(directory / "config.json", {"model_type": case.model_type} | case.config)
    write_json(directory / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})


def save_model(case: Case, seed: int, directory: Path) -> None:
    if case.reference:
        save_reference(case, seed, directory)
        return
    config = transformers.AutoConfig.for_model(case.model_type, **case.config)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    random_weights(model, np.random.default_rng(seed))
    model.to(case.dtype)
    size = model.num_parameters() * case.dtype.itemsize
    model.save_pretrained(directory, max_shard_size=size // 3 if case.shards else size * 2)
    for path in directory.glob("*.safetensors"):
        path.chmod(0o644)  # transformers makes it readable only by the owner
    generation = {"bos_token_id": 1, "eos_token_id": 2} | case.generation
    write_json(directory / "generation_config.json", generation)
    if case.form == 4:
        check_v4_loads_the_same(case, directory)
    elif case.written:
        path = directory / "config.json"
        write_json(path, json.loads(path.read_text(encoding="utf-8")) | case.written)


def check_v4_loads_the_same(case: Case, directory: Path) -> None:
    """Rewrite config.json in the older form; the model that transformers loads must be bitwise identical."""
    tokens = torch.arange(60)[None] % VOCABULARY
    with torch.no_grad():
        before = load(directory)(tokens).logits
        path = directory / "config.json"
        write_json(path, v4_config(json.loads(path.read_text(encoding="utf-8")), case))
        after = load(directory)(tokens).logits
    if not torch.equal(before, after):
        raise SystemExit(f"{directory.name}: the transformers 4 form of config.json loads as another model")


def load(directory: Path, **config: Any) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", **config
    ).eval()


def load_case(case: Case, directory: Path) -> Any:
    if case.reference:
        return Reference(case.config | {"model_type": case.model_type}, load_file(directory / "model.safetensors"))
    model = load(directory)
    if case.length:
        # A sequence of this length sets the frequencies for it; prevent them from being reset.
        logits_of(model, [5] * case.length)
        rotary = model.model.rotary_emb
        rotary.original_inv_freq = rotary.inv_freq.clone()
        rotary.original_max_seq_len = 0
    return model


# --- logits and greedy tokens
# -----------------------------------------------------------------------------------


def logits_of(model: Any, tokens: list[int]) -> torch.Tensor:
    """Return logits [L, V] at every position, without a cache."""
    if isinstance(model, Reference):
        return torch.from_numpy(model.logits(tokens))
    with torch.no_grad():
        return model(torch.tensor([tokens]), use_cache=False).logits[0]


def greedy(model: Any, prompt: list[int]) -> tuple[list[int], list[float]] | None:
    """Return 64 greedy tokens and their margins, computed without a cache; None if a margin is narrow."""
    tokens, margins = list(prompt), []
    for _ in range(STEPS):
        best = torch.topk(logits_of(model, tokens)[-1], 2)
        margins.append(float(best.values[0] - best.values[1]))
        if margins[-1] < MIN_MARGIN:
            return None
        tokens.append(int(best.indices[0]))
    return tokens[len(prompt) :], margins


def cached_greedy(model: Any, prompt: list[int]) -> list[int]:
    """Return the greedy tokens, using the model's own KV cache."""
    step, cache, out = prompt, None, []
    with torch.no_grad():
        for _ in range(STEPS):
            result = model(torch.tensor([step]), past_key_values=cache, use_cache=True)
            cache = result.past_key_values
            step = [int(result.logits[0, -1].argmax())]
            out += step
    return out


def stored_positions(length: int) -> list[int]:
    if length < 20:
        return list(range(length))
    return sorted({*range(0, length, 8), length - 1})


def varied(tokens: list[int], distinct: int) -> bool:
    """Whether greedy text is worth comparing: many distinct tokens, none of which dominates."""
    most = STEPS // 3 if distinct >= MIN_DISTINCT else STEPS
    return len(set(tokens)) >= distinct and max(map(tokens.count, tokens)) < most


def golden(model: Any, case: Case, seed: int) -> dict[str, np.ndarray] | None:
    """Return the arrays of golden.npz, or None if this seed's text is ambiguous or not varied."""
    rng = np.random.default_rng(seed + 1_000_003)
    arrays = {"seed": np.int64(seed), "lengths": np.array(LENGTHS, np.int32)}
    if case.reference:
        arrays["source"] = np.array("reference_models.py")
    for i, length in enumerate(LENGTHS):
        prompt = rng.integers(3, VOCABULARY, length).tolist()
        found = greedy(model, prompt)
        if found is None or not varied(found[0], case.distinct):
            return None
        if not case.reference and cached_greedy(model, prompt) != found[0]:
            raise SystemExit("greedy tokens with and without a cache differ")
        positions = stored_positions(length)
        arrays[f"prompt_{i}"] = np.array(prompt, np.int32)
        arrays[f"positions_{i}"] = np.array(positions, np.int32)
        arrays[f"logits_{i}"] = logits_of(model, prompt)[positions].numpy()
        arrays[f"greedy_{i}"] = np.array(found[0], np.int32)
        arrays[f"margin_{i}"] = np.array(found[1], np.float32)
    rows = [arrays[f"prompt_{i}"].tolist() + arrays[f"greedy_{i}"].tolist() for i in range(len(LENGTHS))]
    return arrays if routes_are_clear(model, rows) else None


def check_window(directory: Path, window: int) -> None:
    """Check that position i sees exactly the last `window` positions, including its own, with an explicit mask."""
    tokens = [(7 * i) % 100 for i in range(5 * window)]
    index = torch.arange(len(tokens))
    seen = (index[None] <= index[:, None]) & (index[None] > index[:, None] - window)
    mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)[None, None]
    windowed = logits_of(load(directory), tokens)
    full = load(directory, sliding_window=None)
    with torch.no_grad():
        by_hand = full(torch.tensor([tokens]), attention_mask=mask, use_cache=False).logits[0]
    if not torch.allclose(windowed, by_hand, atol=1e-5, rtol=1e-5):
        raise SystemExit(f"{directory.name}: the sliding window is not applied as documented")
    if torch.allclose(windowed[window:], logits_of(full, tokens)[window:], atol=1e-2):
        raise SystemExit(f"{directory.name}: the sliding window changes nothing")


def check_scaling(case: Case, directory: Path) -> None:
    """Check that rope scaling changes the logits; otherwise a reader that ignores it would go undetected."""
    tokens = [(7 * i) % 100 for i in range(60)]
    kept = {
        key: case.config["rope_parameters"][key]
        for key in ("rope_theta", "partial_rotary_factor")
        if key in case.config["rope_parameters"]
    }
    plain = logits_of(load(directory, rope_parameters={"rope_type": "default"} | kept), tokens)
    if torch.allclose(logits_of(load_case(case, directory), tokens)[8:], plain[8:], atol=1e-2):
        raise SystemExit(f"{directory.name}: rope scaling changes nothing")


def make_model(name: str, directory: Path, seeds: range) -> None:
    """Write the case of the first seed with unambiguous, varied text to `directory`."""
    case = CASES[name]
    for seed in seeds:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        save_model(case, seed, directory)
        arrays = golden(load_case(case, directory), case, seed)
        if arrays is not None:
            break
    else:
        raise SystemExit(f"{name}: no seed in {seeds} gives clear and varied greedy text")
    if case.model_type == "mistral" and case.config["sliding_window"]:
        check_window(directory, case.config["sliding_window"])
    if case.config.get("rope_parameters", {}).get("rope_type", "default") != "default":
        check_scaling(case, directory)
    np.savez_compressed(directory / "golden.npz", **arrays)
    print(f"{name}: seed {seed}, standard deviation of logits {arrays['logits_6'].std():.2f}", flush=True)


# --- command
# ----------------------------------------------------------------------------------------------------


def same_file(ours: Path, theirs: Path) -> bool:
    """Compare bytes; for .npz, compare integers exactly and floats up to another CPU's rounding differences."""
    if ours.suffix != ".npz":
        return ours.read_bytes() == theirs.read_bytes()
    a, b = np.load(ours), np.load(theirs)
    return sorted(a) == sorted(b) and all(
        np.allclose(a[key], b[key], rtol=1e-4, atol=1e-4)
        if a[key].dtype.kind == "f"
        else np.array_equal(a[key], b[key])
        for key in a
    )


def differences(ours: Path, theirs: Path) -> list[str]:
    """Return the names of files that differ or exist in only one directory."""
    names = {path.relative_to(root).as_posix() for root in (ours, theirs) for path in root.rglob("*") if path.is_file()}
    return sorted(
        name
        for name in names
        if not ((ours / name).is_file() and (theirs / name).is_file() and same_file(ours / name, theirs / name))
    )


def make(name: str, root: Path, seeds: range) -> Path:
    """Write the case `name` below `root`; return its directory."""
    if name in TOKENIZERS:
        directory = root / "tokenizers" / name
        make_tokenizer(name, directory)
    elif name in T5_CASES:
        directory = root / "t5" / name
        make_t5(name, directory, seeds)
    elif name.startswith(LORA):
        directory = root / name
        make_lora(name.removeprefix(LORA), directory, ROOT, seeds)
    else:
        directory = root / name
        make_model(name, directory, seeds)
    size = sum(path.stat().st_size for path in directory.iterdir())
    print(f"{name}: {size / 1e3:.0f} KB", flush=True)
    return directory


def check(name: str) -> list[str]:
    """Recreate a case from the seed of the committed one; return what differs."""
    seeds = range(MAX_SEEDS)
    if name not in TOKENIZERS:
        seed = int(np.load((ROOT / "t5" if name in T5_CASES else ROOT) / name / "golden.npz")["seed"])
        seeds = range(seed, seed + 1)
    with tempfile.TemporaryDirectory() as scratch:
        fresh = make(name, Path(scratch), seeds)
        committed = ROOT / fresh.relative_to(scratch)
        return [f"{name}/{file}" for file in differences(committed, fresh)]


def main() -> int:
    known = [*CASES, *T5_CASES, *(LORA + name for name in LORA_CASES), *TOKENIZERS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("cases", nargs="*", help=f"any of: {', '.join(known)} (default: all)")
    parser.add_argument("--check", action="store_true", help="compare with the committed files, write nothing")
    args = parser.parse_args()
    names = args.cases or known
    unknown = sorted(set(names) - set(known))
    if unknown:
        parser.error(f"no such case: {', '.join(unknown)}")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    bad = []
    for name in names:
        if args.check:
            bad += check(name)
        else:
            make(name, ROOT, range(MAX_SEEDS))
    for path in bad:
        print(f"differs: {path}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
