"""The architectures that can run: one visible table from a checkpoint's `architectures` entry to its family.

A family is one line here, one reader of its config and, where its names differ, one table in `parameters`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inference.errors import ConfigError, did_you_mean
from inference.models.config import Family, ModelConfig, read_model_config

LLAMA = Family("llama", attention_bias_on_output=True)
MISTRAL = Family("mistral", sliding="always")
QWEN2 = Family("qwen2", qkv_bias=True, sliding="optional")
QWEN3 = Family("qwen3", qk_norm=True, attention_bias_on_output=True, sliding="optional")

ARCHITECTURES: dict[str, Family] = {
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": MISTRAL,
    "Qwen2ForCausalLM": QWEN2,
    "Qwen3ForCausalLM": QWEN3,
}

# Other spellings of the same: Hugging Face's model_type, MindFormers' arch and config types.
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
}


def resolve_architecture(name: str, where: str) -> str:
    """The table's key for an architecture, model_type or MindFormers class name."""
    key = ALIASES.get(name, name)
    if key in ARCHITECTURES:
        return key
    accepted = f"this release runs {', '.join(ARCHITECTURES)}"
    guess = did_you_mean(name, [*ARCHITECTURES, *ALIASES])
    raise ConfigError(f"{where}: architecture '{name}' is not supported", f"{guess} {accepted}" if guess else accepted)


def model_config_from(values: Mapping[str, Any], where: str, architecture: str | None = None) -> ModelConfig:
    """Reads the keys of a config.json (with a YAML's keys laid over them) for the architecture that they name.

    Args:
        architecture: a name that outranks what `values` says, such as MindFormers' `model.arch.type`.
    """
    named = values.get("architectures") or values.get("model_type") or values.get("type")
    name = architecture or (named[0] if isinstance(named, (list, tuple)) else named)
    if not name:
        raise ConfigError(f"{where}: no architecture is named", "give 'architectures', 'model_type' or 'type'")
    key = resolve_architecture(str(name), where)
    return read_model_config(values, ARCHITECTURES[key], key, where)
