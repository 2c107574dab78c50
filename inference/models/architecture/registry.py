"""The supported architectures: one table from a checkpoint's `architectures` entry to its family.

A family is one line here, one reader of its config and, if its tensor names differ, one table in `tensor_names`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from inference.errors import ConfigError, did_you_mean
from inference.files.values import TEXT
from inference.models.architecture import tensor_names
from inference.models.architecture.config import Family, Storage, read_model_config
from inference.models.architecture.experts import ExpertsRule
from inference.models.architecture.t5_config import AnyConfig, read_t5_config

MIXTRAL_EXPERTS = ExpertsRule(chosen=2, normalize=True)
# MindFormers' Mixtral is its Llama with a moe_config.
LLAMA = Family("llama", attention_bias_on_output=True, experts=MIXTRAL_EXPERTS)
MISTRAL = Family("mistral", sliding="always")
QWEN2 = Family("qwen2", qkv_bias=True, sliding="optional")
QWEN3 = Family("qwen3", qk_norm=True, attention_bias_on_output=True, sliding="optional")
GLM = Family("glm", storage=Storage(pairs="neighbors"), defaults={"partial_rotary_factor": 0.5, "attention_bias": True})
GLM4 = replace(GLM, name="glm4", post_norms=True)
# ChatGLM 2 and 3, and GLM-4 9B in the same layout; here `seq_length` is the model's own limit.
CHATGLM = Family(
    "chatglm",
    storage=Storage(tensor_names.CHATGLM, pairs="neighbors"),
    defaults={"partial_rotary_factor": 0.5},
    tokenizer="ChatGLMTokenizer",
)
BAICHUAN = Family("baichuan", positions="rope_or_alibi", storage=Storage(tensor_names.BAICHUAN, normalized_head=True))
INTERNLM2 = Family("internlm2", attention_bias_on_output=True, storage=Storage(tensor_names.INTERNLM2))
PHI3 = Family("phi3", sliding="always")
_GEMMA = Family(
    "gemma",
    sliding="pattern",
    post_norms=True,
    scaled_embeddings=True,
    attention_bias_on_output=True,
    storage=Storage(tensor_names.GEMMA, norm_offset=1.0),
)
# The defaults of transformers' config classes, for keys that a published config.json omits.
_GEMMA_DEFAULTS = {"head_dim": 256, "query_pre_attn_scalar": 256, "hidden_act": "gelu_pytorch_tanh"}
_GEMMA_DEFAULTS |= {"tie_word_embeddings": True}
GEMMA2 = replace(
    _GEMMA,
    name="gemma2",
    defaults=_GEMMA_DEFAULTS
    | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "sliding_window_pattern": 2},
)
GEMMA3 = replace(
    _GEMMA,
    name="gemma3",
    qk_norm=True,
    local_rope=True,
    defaults=_GEMMA_DEFAULTS | {"rope_theta": 1e6, "sliding_window_pattern": 6},
)
# The first Gemma lacks the extra norms, windows and soft caps of later ones, and uses Llama's names.
GEMMA = Family(
    "gemma",
    scaled_embeddings=True,
    attention_bias_on_output=True,
    storage=Storage(norm_offset=1.0),
    defaults={"head_dim": 256, "hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True},
)
STARCODER2 = Family(
    "starcoder2",
    sliding="always",
    gated=False,
    layer_norm=True,
    storage=Storage(tensor_names.STARCODER2),
    defaults={"hidden_act": "gelu_pytorch_tanh", "use_bias": True, "tie_word_embeddings": True, "rms_norm_eps": 1e-5},
)
ERNIE4_5 = Family(
    "ernie4_5", storage=Storage(pairs="neighbors"), defaults={"head_dim": 128, "tie_word_embeddings": True}
)
SEED_OSS = Family("seed_oss", defaults={"head_dim": 128, "attention_bias": True})
SMOLLM3 = Family(
    "smollm3",
    attention_bias_on_output=True,
    defaults={"no_rope_layer_interval": 4, "rope_theta": 2e6, "tie_word_embeddings": True},
)
GRANITE = Family("granite", attention_bias_on_output=True, defaults={"attention_multiplier": 1.0})
GRANITE_MOE = replace(
    GRANITE,
    name="granitemoe",
    storage=Storage(tensor_names.GRANITE_MOE),
    experts=ExpertsRule(chosen=2, normalize=True),
)
OLMO2 = Family(
    "olmo2",
    attention_bias_on_output=True,
    pre_norms=False,
    post_norms=True,
    qk_norm=True,
    norms_all_heads=True,
    storage=Storage(tensor_names.POST_NORMS),
    defaults={"rms_norm_eps": 1e-5},
)
EXAONE4 = Family(
    "exaone4",
    sliding="pattern",
    rotated="windowed",
    pre_norms=False,
    post_norms=True,
    qk_norm=True,
    storage=Storage(tensor_names.POST_NORMS),
    defaults={"rms_norm_eps": 1e-5, "sliding_window": 4096, "sliding_window_pattern": 4},
)
STABLELM = Family("stablelm", layer_norm=True, defaults={"rms_norm_eps": 1e-5, "partial_rotary_factor": 0.25})
HUNYUAN = Family(
    "hunyuan_v1_dense",
    attention_bias_on_output=True,
    qk_norm=True,
    norms_rotated=True,
    storage=Storage(tensor_names.HUNYUAN),
    defaults={"rms_norm_eps": 1e-5},
)
MINISTRAL = replace(MISTRAL, name="ministral")
PHI = Family(
    "phi",
    qkv_bias=True,
    output_bias=True,
    mlp_bias=True,
    down_bias=True,
    head_bias=True,
    parallel=True,
    gated=False,
    layer_norm=True,
    storage=Storage(tensor_names.PHI),
    defaults={"hidden_act": "gelu_new", "rms_norm_eps": 1e-5, "partial_rotary_factor": 0.5},
)
COHERE = Family(
    "cohere",
    attention_bias_on_output=True,
    parallel=True,
    layer_norm=True,
    norm_bias=False,
    storage=Storage(pairs="neighbors"),
    defaults={"rms_norm_eps": 1e-5, "rope_theta": 5e5, "logit_scale": 0.0625, "tie_word_embeddings": True},
)
COHERE2 = replace(
    COHERE,
    name="cohere2",
    sliding="pattern",
    rotated="windowed",
    defaults={**COHERE.defaults, "rope_theta": 10000.0, "sliding_window": 4096, "sliding_window_pattern": 4},
)
GPT2 = Family(
    "gpt2",
    qkv_bias=True,
    output_bias=True,
    mlp_bias=True,
    down_bias=True,
    positions="learned",
    gated=False,
    layer_norm=True,
    storage=Storage(tensor_names.GPT2, transposed=True),
    defaults={"hidden_act": "gelu_new", "expand_ratio": 4, "rms_norm_eps": 1e-5, "tie_word_embeddings": True},
)
TELECHAT2 = Family(
    "telechat2",
    output_bias=True,
    down_bias=True,
    storage=Storage(tensor_names.TELECHAT),
    defaults={"rope_scaling": {"rope_type": "dynamic_ntk"}},
)
MIXTRAL = Family("mixtral", sliding="always", storage=Storage(tensor_names.MIXTRAL), experts=MIXTRAL_EXPERTS)
QWEN2_MOE = replace(QWEN2, name="qwen2_moe", storage=Storage(tensor_names.QWEN2_MOE), experts=ExpertsRule(chosen=4))
QWEN3_MOE = replace(QWEN3, name="qwen3_moe", experts=ExpertsRule(chosen=8))
# GLM-4.5; its rows are already in the kernels' order, unlike those of the dense GLM-4.
GLM4_MOE = Family(
    "glm4_moe",
    experts=ExpertsRule(chosen=8, normalize=True, method="noaux_tc"),
    defaults={"partial_rotary_factor": 0.5, "use_qk_norm": False},
)
DEEPSEEK_V2 = Family(
    "deepseek_v2",
    latent=True,
    attention_bias_on_output=True,
    storage=Storage(tensor_names.DEEPSEEK),
    experts=ExpertsRule(),
)
DEEPSEEK_V3 = replace(DEEPSEEK_V2, name="deepseek_v3", experts=ExpertsRule(chosen=8, normalize=True, method="noaux_tc"))
T5 = Family("t5")

ARCHITECTURES: dict[str, Family] = {
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": MISTRAL,
    "Qwen2ForCausalLM": QWEN2,
    "Qwen3ForCausalLM": QWEN3,
    "MixtralForCausalLM": MIXTRAL,
    "Qwen2MoeForCausalLM": QWEN2_MOE,
    "Qwen3MoeForCausalLM": QWEN3_MOE,
    "Glm4MoeForCausalLM": GLM4_MOE,
    "DeepseekV2ForCausalLM": DEEPSEEK_V2,
    "DeepseekV3ForCausalLM": DEEPSEEK_V3,
    "GlmForCausalLM": GLM,
    "Glm4ForCausalLM": GLM4,
    "ChatGLMForConditionalGeneration": CHATGLM,
    "BaichuanForCausalLM": BAICHUAN,
    "InternLM2ForCausalLM": INTERNLM2,
    "Phi3ForCausalLM": PHI3,
    "Gemma2ForCausalLM": GEMMA2,
    "Gemma3ForCausalLM": GEMMA3,
    "GemmaForCausalLM": GEMMA,
    "Starcoder2ForCausalLM": STARCODER2,
    "Ernie4_5ForCausalLM": ERNIE4_5,
    "SeedOssForCausalLM": SEED_OSS,
    "SmolLM3ForCausalLM": SMOLLM3,
    "GraniteForCausalLM": GRANITE,
    "GraniteMoeForCausalLM": GRANITE_MOE,
    "Olmo2ForCausalLM": OLMO2,
    "Exaone4ForCausalLM": EXAONE4,
    "StableLmForCausalLM": STABLELM,
    "HunYuanDenseV1ForCausalLM": HUNYUAN,
    "MinistralForCausalLM": MINISTRAL,
    "PhiForCausalLM": PHI,
    "CohereForCausalLM": COHERE,
    "Cohere2ForCausalLM": COHERE2,
    "GPT2LMHeadModel": GPT2,
    "TeleChat2ForCausalLM": TELECHAT2,
    "T5ForConditionalGeneration": T5,
    "MT5ForConditionalGeneration": T5,
}

# Other names of these architectures: Hugging Face's model_type, MindFormers' arch and config types.
ALIASES = {
    "llama": "LlamaForCausalLM",
    "LlamaConfig": "LlamaForCausalLM",
    "ParallelLlamaForCausalLM": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "MistralConfig": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "Qwen2Config": "Qwen2ForCausalLM",
    "ParallelQwenForCausalLM": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "Qwen3Config": "Qwen3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "MixtralConfig": "MixtralForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "Qwen2MoeConfig": "Qwen2MoeForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "Qwen3MoeConfig": "Qwen3MoeForCausalLM",
    "glm4_moe": "Glm4MoeForCausalLM",
    "Glm4MoeConfig": "Glm4MoeForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "DeepseekV2Config": "DeepseekV2ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "DeepseekV3Config": "DeepseekV3ForCausalLM",
    "glm": "GlmForCausalLM",
    "glm4": "Glm4ForCausalLM",
    "Glm4Config": "Glm4ForCausalLM",
    "chatglm": "ChatGLMForConditionalGeneration",
    "ChatGLMModel": "ChatGLMForConditionalGeneration",
    "ChatGLM2Config": "ChatGLMForConditionalGeneration",
    "ChatGLM2ForConditionalGeneration": "ChatGLMForConditionalGeneration",
    "baichuan": "BaichuanForCausalLM",
    "BaiChuanForCausalLM": "BaichuanForCausalLM",
    "Baichuan7BV2ForCausalLM": "BaichuanForCausalLM",
    "Baichuan13BV2ForCausalLM": "BaichuanForCausalLM",
    "internlm2": "InternLM2ForCausalLM",
    "InternLM2Config": "InternLM2ForCausalLM",
    "Yi": "LlamaForCausalLM",
    "YiForCausalLM": "LlamaForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "starcoder2": "Starcoder2ForCausalLM",
    "ernie4_5": "Ernie4_5ForCausalLM",
    "seed_oss": "SeedOssForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "granite": "GraniteForCausalLM",
    "granitemoe": "GraniteMoeForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "exaone4": "Exaone4ForCausalLM",
    "stablelm": "StableLmForCausalLM",
    "hunyuan_v1_dense": "HunYuanDenseV1ForCausalLM",
    "ministral": "MinistralForCausalLM",
    "phi": "PhiForCausalLM",
    "cohere": "CohereForCausalLM",
    "cohere2": "Cohere2ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "GPT2Config": "GPT2LMHeadModel",
    "telechat": "TeleChat2ForCausalLM",
    "telechat2": "TeleChat2ForCausalLM",
    "TelechatForCausalLM": "TeleChat2ForCausalLM",
    "TelechatConfig": "TeleChat2ForCausalLM",
    "Telechat2Config": "TeleChat2ForCausalLM",
    "Telechat2ForCausalLM": "TeleChat2ForCausalLM",
    "t5": "T5ForConditionalGeneration",
    "T5Config": "T5ForConditionalGeneration",
    "T5WithLMHeadModel": "T5ForConditionalGeneration",
    "mt5": "MT5ForConditionalGeneration",
    "MT5Config": "MT5ForConditionalGeneration",
}


# Maximum length of an architecture's name.
LONGEST_NAME = 200


def resolve_architecture(name: str, where: str) -> str:
    """Returns the table's key for an architecture, model_type or MindFormers class name."""
    key = ALIASES.get(name, name)
    if key in ARCHITECTURES:
        return key
    accepted = f"this release runs {', '.join(ARCHITECTURES)}"
    guess = did_you_mean(name, [*ARCHITECTURES, *ALIASES])
    raise ConfigError(f"{where}: architecture '{name}' is not supported", f"{guess} {accepted}" if guess else accepted)


def model_type_of(architecture: str) -> str:
    """Returns the model_type by which transformers' AutoConfig finds the config class of an architecture."""
    return next(alias for alias, name in ALIASES.items() if name == architecture and alias.islower())


def model_config_from(values: Mapping[str, Any], where: str, architecture: str | None = None) -> AnyConfig:
    """Reads the keys of a config.json (overridden by a YAML's) for the architecture that they name.

    Args:
        architecture: a name that overrides the one in `values`, such as MindFormers' `model.arch.type`.
    """
    named = values.get("architectures") or values.get("model_type") or values.get("type")
    name = architecture or (named[0] if isinstance(named, (list, tuple)) else named)
    if not name:
        raise ConfigError(f"{where}: no architecture is named", "give 'architectures', 'model_type' or 'type'")
    key = resolve_architecture(TEXT.read(name, f"{where}: the architecture")[:LONGEST_NAME], where)
    if ARCHITECTURES[key] is T5:
        return read_t5_config(values, key, where)
    return read_model_config(values, ARCHITECTURES[key], key, where)
