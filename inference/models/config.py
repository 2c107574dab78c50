"""The architecture of a decoder-only model, as its `config.json` or a MindFormers YAML states it.

Knows sizes, rotary embedding and windows; knows nothing about tensors, files or devices. The one internal spelling is
Hugging Face's; MindFormers' names are translated into it before anything is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from inference.errors import ConfigError

# MindFormers' name -> Hugging Face's. `seq_length` stays: it is the length to run with, not the model's own limit.
MINDFORMERS_NAMES = {
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "multi_query_group_num": "num_key_value_heads",
    "theta": "rope_theta",
    "max_position_embedding": "max_position_embeddings",
}
ACTIVATIONS = ("silu",)
LAYER_TYPES = ("full_attention", "sliding_attention")


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding: base, and how its frequencies are scaled for longer contexts."""

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192

    def inverse_frequencies(self, head_dim: int) -> np.ndarray:
        """Angle per position of each rotated pair, float32 [head_dim / 2], in radians.

        Source: RoFormer (Su et al. 2021), eq. 15; position interpolation (Chen et al. 2023); Llama 3.1's
        frequency-dependent interpolation as its model card's `rope_scaling` fields define it.
        """
        exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        frequencies = (1.0 / np.float32(self.theta) ** exponents).astype(np.float32)
        return ROPE_KINDS[self.kind](self, frequencies)


def _unscaled(rope: RopeConfig, frequencies: np.ndarray) -> np.ndarray:
    return frequencies


def _linear(rope: RopeConfig, frequencies: np.ndarray) -> np.ndarray:
    return frequencies / np.float32(rope.factor)


def _llama3(rope: RopeConfig, frequencies: np.ndarray) -> np.ndarray:
    """Long wavelengths are interpolated, short ones kept, and those between are blended."""
    wavelengths = 2 * math.pi / frequencies
    turns = rope.original_max_positions / wavelengths
    blend = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blend = np.clip(blend, 0.0, 1.0)
    return ((1 - blend) * frequencies / rope.factor + blend * frequencies).astype(np.float32)


ROPE_KINDS: dict[str, Callable[[RopeConfig, np.ndarray], np.ndarray]] = {
    "default": _unscaled,
    "linear": _linear,
    "llama3": _llama3,
}


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a pre-norm decoder with rotary attention and a gated feed-forward.

    `windows` has an entry a layer: how many positions back a token may look (itself included), None for all.
    `context_length` is the most tokens a sequence may have, prompt and answer together.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    context_length: int
    rope: RopeConfig
    tie_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    windows: tuple[int | None, ...]

    @property
    def query_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def group_size(self) -> int:
        """Query heads that share one key/value head."""
        return self.num_heads // self.num_kv_heads

    @property
    def num_parameters(self) -> int:
        attention = self.hidden_size * (2 * self.query_size + 2 * self.kv_size)
        layer = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_embeddings else 2)
        return self.num_layers * layer + embeddings + self.hidden_size


@dataclass(frozen=True)
class Family:
    """What differs between families that share the decoder block."""

    name: str
    qkv_bias: bool = False
    qk_norm: bool = False
    # Llama's attention_bias puts a bias on the output projection too; Qwen's has none there.
    attention_bias_on_output: bool = False
    # Which layers may have a sliding window: none, all, or those that the config's switches choose.
    sliding: str = "never"


class Fields:
    """Typed access to the keys of a model's config, with errors that name `where` they came from."""

    def __init__(self, values: Mapping[str, Any], where: str):
        self._values = values
        self.where = where

    def error(self, key: str, accepted: str) -> ConfigError:
        return ConfigError(f"{self.where}: '{key}' is {self._values.get(key)!r}", f"it must be {accepted}")

    def get(self, key: str, default: Any = None) -> Any:
        value = self._values.get(key)
        return default if value is None else value

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.get(key, default)
        if value is None:
            raise ConfigError(f"{self.where}: '{key}' is missing", "the architecture cannot be built without it")
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise self.error(key, "a positive integer")
        return value

    def number(self, key: str, default: float) -> float:
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise self.error(key, "a positive number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, "true or false")
        return value


def lay_over(own: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of config.json with a YAML's keys over them, one spelling over the other.

    transformers 5 keeps in `rope_parameters` what transformers 4 called `rope_theta` and `rope_scaling`; it is taken
    apart where the YAML says one of these, so that the YAML wins.
    """
    base = translate_mindformers(own)
    top = translate_mindformers(given)
    if {"rope_theta", "rope_scaling"} & set(top) and isinstance(base.get("rope_parameters"), Mapping):
        scaling = dict(base.pop("rope_parameters"))
        base = {"rope_theta": scaling.pop("rope_theta", None), "rope_scaling": scaling, **base}
    return {**base, **top}


def translate_mindformers(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same architecture with Hugging Face's key names."""
    out = {MINDFORMERS_NAMES.get(key, key): value for key, value in values.items()}
    if "qkv_has_bias" in out:
        out["qkv_bias"] = out.pop("qkv_has_bias")
    method = str(out.pop("extend_method", "None")).upper()
    scaling = out.pop("scaling_factor", None)
    if method == "PI" and scaling is not None:
        out["rope_scaling"] = {"type": "linear", "factor": scaling}
    elif method == "LLAMA3" and isinstance(scaling, Mapping):
        out["rope_scaling"] = {**scaling, "rope_type": "llama3"}
    elif method in ("PI", "LLAMA3"):
        accepted = "a number" if method == "PI" else "a mapping with factor, low_freq_factor, high_freq_factor"
        raise ConfigError(f"'scaling_factor' is {scaling!r}", f"for extend_method {method} it must be {accepted}")
    elif method != "NONE":
        raise ConfigError(f"extend_method '{method}' is not supported", "accepted: None, PI, LLAMA3")
    return out


def read_model_config(values: Mapping[str, Any], family: Family, architecture: str, where: str) -> ModelConfig:
    """Reads an architecture from Hugging Face's keys (those of transformers 4 or 5) or MindFormers'.

    Args:
        values: keys of `config.json`, with a YAML's `model_config` laid over them.
        where: the file to name in errors.

    Raises:
        ConfigError: a size is missing or of the wrong type, or a feature is not supported.
    """
    fields = Fields(translate_mindformers(values), where)
    activation = fields.get("hidden_act", "silu")
    if activation not in ACTIVATIONS:
        raise fields.error("hidden_act", f"one of {', '.join(ACTIVATIONS)}")
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    kv_heads = fields.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise fields.error("num_key_value_heads", f"a divisor of num_attention_heads ({heads})")
    if fields.get("head_dim") is None and hidden % heads:
        raise fields.error("num_attention_heads", f"a divisor of hidden_size ({hidden}), or head_dim must be given")
    head_dim = fields.integer("head_dim", hidden // heads)
    if head_dim % 2:
        raise fields.error("head_dim", "even, because rotary embedding turns pairs")
    layers = fields.integer("num_hidden_layers")
    attention_bias = fields.flag("attention_bias", False)
    return ModelConfig(
        architecture=architecture,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=_intermediate_size(fields, hidden),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        context_length=_context_length(fields),
        rope=_rope(fields),
        tie_embeddings=fields.flag("tie_word_embeddings", False),
        qkv_bias=fields.flag("qkv_bias", family.qkv_bias or attention_bias),
        output_bias=attention_bias and family.attention_bias_on_output,
        mlp_bias=fields.flag("mlp_bias", False),
        qk_norm=family.qk_norm,
        windows=_windows(fields, family, layers),
    )


def _intermediate_size(fields: Fields, hidden: int) -> int:
    """As given, or Llama's rule: two thirds of four times the width, scaled, rounded up to `multiple_of`."""
    if fields.get("intermediate_size") is not None:
        return fields.integer("intermediate_size")
    if fields.get("multiple_of") is None:
        raise ConfigError(f"{fields.where}: neither 'intermediate_size' nor 'multiple_of' is given")
    width = 4 * hidden
    if fields.get("ffn_dim_multiplier") is not None:
        width = int((fields.number("ffn_dim_multiplier", 1.0) + 0.01) * width)
    multiple = fields.integer("multiple_of")
    return multiple * math.ceil(int(2 * width / 3) / multiple)


def _context_length(fields: Fields) -> int:
    limit = fields.get("max_position_embeddings")
    length = fields.get("seq_length")
    if limit is None and length is None:
        raise ConfigError(f"{fields.where}: neither 'max_position_embeddings' nor 'seq_length' is given")
    if limit is None:
        return fields.integer("seq_length")
    if length is None:
        return fields.integer("max_position_embeddings")
    return min(fields.integer("seq_length"), fields.integer("max_position_embeddings"))


def _rope(fields: Fields) -> RopeConfig:
    """transformers 4 writes `rope_theta` and `rope_scaling`; transformers 5 puts both into `rope_parameters`."""
    given = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    if not isinstance(given, Mapping):
        raise fields.error("rope_scaling", "a mapping")
    scaling = Fields(given, f"{fields.where}: rope_scaling")
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if not isinstance(kind, str) or kind not in ROPE_KINDS:
        raise ConfigError(f"{scaling.where}: rope_type '{kind}' is not supported", f"accepted: {', '.join(ROPE_KINDS)}")
    return RopeConfig(
        theta=scaling.number("rope_theta", fields.number("rope_theta", 10000.0)),
        kind=kind,
        factor=scaling.number("factor", 1.0),
        low_freq_factor=scaling.number("low_freq_factor", 1.0),
        high_freq_factor=scaling.number("high_freq_factor", 4.0),
        original_max_positions=scaling.integer("original_max_position_embeddings", 8192),
    )


def _windows(fields: Fields, family: Family, layers: int) -> tuple[int | None, ...]:
    """`layer_types` decides where it is given; before transformers 4.53, `max_window_layers` did."""
    slides = family.sliding == "always" or (family.sliding == "optional" and fields.flag("use_sliding_window", False))
    if not slides or fields.get("sliding_window") is None:
        return (None,) * layers
    window = fields.integer("sliding_window")
    kinds = fields.get("layer_types")
    if kinds is not None:
        if not isinstance(kinds, list) or len(kinds) < layers:
            raise fields.error("layer_types", f"a list with an entry for each of the {layers} layers")
        if any(kind not in LAYER_TYPES for kind in kinds[:layers]):
            raise fields.error("layer_types", f"made of {' and '.join(LAYER_TYPES)}")
        return tuple(window if kind == "sliding_attention" else None for kind in kinds[:layers])
    first = 0 if family.sliding == "always" else fields.get("max_window_layers", layers)
    if type(first) is not int or first < 0:
        raise fields.error("max_window_layers", "the number of layers that see their whole context")
    return tuple(None if layer < first else window for layer in range(layers))
