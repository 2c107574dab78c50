"""The architecture of a decoder-only model, as its `config.json` or a MindFormers YAML states it.

Knows sizes, rotary embedding and windows; knows nothing about tensors, files or devices. The one internal spelling is
Hugging Face's; MindFormers' names are translated into it before anything is read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from inference.errors import ConfigError
from inference.models.experts import ExpertsConfig, ExpertsRule, from_moe_config, read_experts
from inference.models.latent import LatentConfig, read_latent
from inference.models.rope import (
    ROPE_KINDS,
    RopeConfig,
    alibi_slopes,
    longrope_attention_factor,
    yarn_attention_factor,
)

# Other names of a key -> Hugging Face's usual one: MindFormers', and those of families that go their own way.
# `seq_length` stays: it is the length to run with, not the model's own limit.
OTHER_NAMES = {
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "theta": "rope_theta",
    "max_position_embedding": "max_position_embeddings",
    "qkv_has_bias": "qkv_bias",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_embd": "hidden_size",
    "n_embed": "hidden_size",
    "n_inner": "intermediate_size",
    "n_positions": "max_position_embeddings",
    "ffn_hidden_size": "intermediate_size",
    "kv_channels": "head_dim",
    "padded_vocab_size": "vocab_size",
    "add_qkv_bias": "qkv_bias",
    "layernorm_epsilon": "rms_norm_eps",
    "layer_norm_epsilon": "rms_norm_eps",
    "hidden_activation": "hidden_act",
    "activation_function": "hidden_act",
    "d_model": "hidden_size",
    "d_ff": "intermediate_size",
    "d_kv": "head_dim",
    "bias": "attention_bias",
    "num_local_experts": "num_experts",
    "n_routed_experts": "num_experts",
}
# The config's names of activations, and the kernels'.
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
LAYER_TYPES = ("full_attention", "sliding_attention")
# How tokens learn their positions; the names that configs give it, and ours.
POSITIONS = {
    "rope": "rope",
    "partial_rope": "rope",
    "alibi": "alibi",
    "learned_absolute": "learned",
}


@dataclass(frozen=True)
class Storage:
    """How a family's checkpoints spell and lay out what the decoder block takes.

    Args:
        names: (regular expression, its replacement), which turn a tensor's name into Llama's.
        transposed: matrices of the layers are [in, out], but for q, k and v where they are apart.
        norm_offset: what is added to a norm's stored weights.
        normalised_head: each row of the output head is divided by its length.
        pairs: which elements of a head of D, R of them rotated, rotary embedding turns together: i and i + R / 2
            (halves), 2i and 2i + 1 (neighbours), or as the kernels have it i and i + D / 2 (spread).
    """

    names: tuple[tuple[str, str], ...] = ()
    transposed: bool = False
    norm_offset: float = 0.0
    normalised_head: bool = False
    pairs: str = "halves"


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and parts of a pre-norm decoder.

    Args:
        windows: an entry a layer: how many positions back a token may look (itself included), None for all.
        context_length: the most tokens a sequence may have, prompt and answer together.
        rotary_size: elements of a head that rotary embedding turns; 0 for a model without.
        local_rope: that of layers with a window, where they have one of their own.
        attention_scale: of scores.
        softcap, logit_softcap: bounds of scores and of logits; None for none.
        activation: of the feed-forward, as in `kernels.shapes`.
        gated: the feed-forward multiplies a gate and a second projection.
        layer_norm: norms are LayerNorm with a bias, not RMSNorm.
        post_norms: what attention and feed-forward give is normed before it is added, too.
        alibi_slopes: what each head's scores lose for a position of distance (ALiBi); None for nothing.
        position_rows: rows of the table of learned positions; None for none.
        embedding_scale: what embeddings are multiplied by.
        experts: of the layers that have them; None for none.
        latent: takes the place of key/value heads.
        draft_layers: layers of a checkpoint, after the others, that are not run.
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
    down_bias: bool
    qk_norm: bool
    windows: tuple[int | None, ...]
    rotary_size: int
    attention_scale: float
    local_rope: RopeConfig | None = None
    softcap: float | None = None
    logit_softcap: float | None = None
    activation: str = "silu"
    gated: bool = True
    layer_norm: bool = False
    post_norms: bool = False
    alibi_slopes: tuple[float, ...] | None = None
    position_rows: int | None = None
    embedding_scale: float = 1.0
    storage: Storage = field(default_factory=Storage)
    experts: ExpertsConfig | None = None
    latent: LatentConfig | None = None
    draft_layers: int = 0

    def experts_of(self, layer: int) -> ExpertsConfig | None:
        """The experts of a layer; None where it has a feed-forward."""
        return self.experts if self.experts and self.experts.layers[layer] else None

    @property
    def decoder_start(self) -> None:
        """An answer goes on from its prompt, and does not begin with a token of its own."""
        return None

    @property
    def cache_length(self) -> int:
        """The most positions of cache that a request needs."""
        return self.context_length

    @property
    def query_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def cache_size(self) -> int:
        """Numbers that a layer's cache holds of a position."""
        return self.latent.width if self.latent else 2 * self.kv_size

    @property
    def group_size(self) -> int:
        """Query heads that share one key/value head."""
        return self.num_heads // self.num_kv_heads

    @property
    def num_parameters(self) -> int:
        """Of matrices and of norms as wide as the model; biases and the norms of heads are left out."""
        attention = self.hidden_size * (2 * self.query_size + 2 * self.kv_size)
        if self.latent:
            attention = self.latent.num_parameters(self.hidden_size, self.num_heads)
        feed_forward = (3 if self.gated else 2) * self.intermediate_size
        layers = self.num_layers * (attention + (4 if self.post_norms else 2) * self.hidden_size)
        for layer in range(self.num_layers):
            experts = self.experts_of(layer)
            layers += self.hidden_size * (experts.size if experts else feed_forward)
        rows = self.vocab_size * (1 if self.tie_embeddings else 2) + (self.position_rows or 0)
        return layers + (rows + 1) * self.hidden_size

    def rope_of(self, layer: int) -> RopeConfig:
        """The rotary embedding of a layer."""
        return self.local_rope if self.local_rope and self.windows[layer] else self.rope

    def rotation(self, rope: RopeConfig) -> np.ndarray:
        """Angle per position of each pair (i, i + D / 2) of a head, and its magnitude, float32 [2, D / 2].

        Pairs that are not rotated have the angle 0.
        """
        table = np.zeros((2, self.head_dim // 2), np.float32)
        table[1] = 1
        pairs = self.rotary_size // 2
        if pairs:
            table[0, :pairs] = rope.inverse_frequencies(self.rotary_size)
            table[1, :pairs] = rope.attention_factor
        return table


@dataclass(frozen=True)
class Family:
    """What differs between families that share the decoder block.

    Args:
        qkv_bias, output_bias, mlp_bias, down_bias: biases that are there whatever the config says.
        attention_bias_on_output: `attention_bias` puts a bias on the output projection too.
        sliding: which layers may have a window: none (never), all (always), those that the config's switches choose
            (optional), or all but every n-th (pattern).
        positions: rope, alibi, learned; or rope_or_alibi, which the config decides.
        local_rope: layers with a window have a rotary base of their own.
        scaled_embeddings: embeddings are multiplied by the root of the width.
        defaults: values of the config's keys where it does not have them.
        experts: how they are chosen, where the config names some; None where the family has none.
        latent: attention is on compressed keys and values (`models/latent.py`).
        tokenizer: its tokenizer's class, for `tokenizer.load_tokenizer`, where that does what no file says.
    """

    name: str
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    down_bias: bool = False
    qk_norm: bool = False
    attention_bias_on_output: bool = False
    sliding: str = "never"
    positions: str = "rope"
    local_rope: bool = False
    gated: bool = True
    layer_norm: bool = False
    post_norms: bool = False
    scaled_embeddings: bool = False
    storage: Storage = field(default_factory=Storage)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    experts: ExpertsRule | None = None
    latent: bool = False
    tokenizer: str | None = None


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

    def count(self, key: str) -> int:
        """An integer that may be 0, which it is where it is not given."""
        value = self.get(key, 0)
        if type(value) is not int or value < 0:
            raise self.error(key, "an integer that is not negative")
        return value

    def number(self, key: str, default: float) -> float:
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise self.error(key, "a positive number")
        return float(value)

    def optional_number(self, key: str) -> float | None:
        return None if self.get(key) is None else self.number(key, 1.0)

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
        if isinstance(scaling.get("full_attention"), Mapping):
            local = scaling.get("sliding_attention") or {}
            base = {"rope_local_base_freq": local.get("rope_theta"), **base}
            scaling = dict(scaling["full_attention"])
        base = {"rope_theta": scaling.pop("rope_theta", None), "rope_scaling": scaling, **base}
    return {**base, **top}


def translate_mindformers(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same architecture with Hugging Face's usual key names."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        name = OTHER_NAMES.get(key, key)
        # A null in one spelling does not undo a value in the other.
        if value is not None or name not in out:
            out[name] = value
    if out.get("type") == "GPT2Config" and out.get("hidden_act") == "gelu":
        # What MindSpore calls GELU is the approximation.
        out["hidden_act"] = "gelu_new"
    if out.pop("multi_query_attention", True) is False:
        out.pop("multi_query_group_num", None)
    groups = out.pop("multi_query_group_num", None)
    if groups is not None:
        out["num_key_value_heads"] = groups
    experts = out.pop("moe_config", None)
    if isinstance(experts, Mapping):
        out |= from_moe_config(experts)
    method = str(out.pop("extend_method", "None")).upper()
    if method not in EXTEND_METHODS:
        raise ConfigError(f"extend_method '{method}' is not supported", f"accepted: {', '.join(EXTEND_METHODS)}")
    factor = out.pop("scaling_factor", None)
    wants = EXTEND_METHODS[method]
    if wants is not None and (not isinstance(factor, wants) or isinstance(factor, bool)):
        accepted = "a mapping with 'factor'" if wants is Mapping else "a number"
        raise ConfigError(f"'scaling_factor' is {factor!r}", f"for extend_method {method} it must be {accepted}")
    if method == "PI":
        out["rope_scaling"] = {"type": "linear", "factor": factor}
    elif method == "NTK":
        # MindFormers multiplies the base itself.
        out["rope_theta"] = (out.get("rope_theta") or 10000.0) * factor
    elif method in ("LINEAR", "LLAMA3", "YARN"):
        out["rope_scaling"] = {**factor, "rope_type": method.lower()}
    elif method == "DYNAMIC_NTK":
        out["rope_scaling"] = {"rope_type": "dynamic_ntk"}
    return out


# MindFormers' ways to scale rotary embedding, and what `scaling_factor` must be for them.
EXTEND_METHODS: dict[str, Any] = {
    "NONE": None,
    "PI": (int, float),
    "NTK": (int, float),
    "DYNAMIC_NTK": None,
    "LINEAR": Mapping,
    "LLAMA3": Mapping,
    "YARN": Mapping,
}


def read_model_config(values: Mapping[str, Any], family: Family, architecture: str, where: str) -> ModelConfig:
    """Reads an architecture from Hugging Face's keys (those of transformers 4 or 5) or MindFormers'.

    Args:
        values: keys of `config.json`, with a YAML's `model_config` laid over them.
        where: the file to name in errors.

    Raises:
        ConfigError: a size is missing or of the wrong type, or a feature is not supported.
    """
    # A null outranks a family's default: a Gemma without soft caps says so by it.
    fields = Fields({**family.defaults, **translate_mindformers(values)}, where)
    _refuse(fields)
    activation = fields.get("hidden_act", family.defaults.get("hidden_act", "silu"))
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise fields.error("hidden_act", f"one of {', '.join(ACTIVATIONS)}")
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    kv_heads = fields.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise fields.error("num_key_value_heads", f"a divisor of num_attention_heads ({heads})")
    if fields.get("head_dim") is None and hidden % heads and not family.latent:
        raise fields.error("num_attention_heads", f"a divisor of hidden_size ({hidden}), or head_dim must be given")
    latent = read_latent(fields, _scaling(fields)) if family.latent else None
    head_dim = latent.rope if latent else fields.integer("head_dim", hidden // heads)
    if head_dim % 2:
        raise fields.error("head_dim", "even, because rotary embedding turns pairs")
    layers = fields.integer("num_hidden_layers")
    positions = _positions(fields, family)
    attention_bias = fields.flag("attention_bias", False)
    every_bias = fields.flag("add_bias_linear", False)
    mlp_bias = fields.flag("mlp_bias", False) or every_bias
    context = _context_length(fields)
    rope, local_rope = _ropes(fields, family, context)
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
        context_length=context,
        rope=rope,
        tie_embeddings=fields.flag("tie_word_embeddings", False),
        qkv_bias=fields.flag("qkv_bias", family.qkv_bias or attention_bias or every_bias),
        output_bias=family.output_bias or every_bias or (attention_bias and family.attention_bias_on_output),
        mlp_bias=family.mlp_bias or mlp_bias,
        down_bias=family.down_bias or mlp_bias,
        qk_norm=family.qk_norm or fields.flag("use_qk_norm", False),
        windows=_windows(fields, family, layers),
        rotary_size=_rotary_size(fields, head_dim) if positions == "rope" else 0,
        attention_scale=fields.number("query_pre_attn_scalar", head_dim) ** -0.5,
        local_rope=local_rope,
        softcap=fields.optional_number("attn_logit_softcapping"),
        logit_softcap=fields.optional_number("final_logit_softcapping"),
        activation=ACTIVATIONS[activation],
        gated=family.gated,
        layer_norm=family.layer_norm,
        post_norms=family.post_norms,
        alibi_slopes=alibi_slopes(heads) if positions == "alibi" else None,
        position_rows=_position_rows(fields) if positions == "learned" else None,
        embedding_scale=hidden**0.5 if family.scaled_embeddings else 1.0,
        storage=_storage(fields, family),
        experts=read_experts(fields, family.experts, layers) if family.experts else None,
        latent=latent,
        draft_layers=fields.count("num_nextn_predict_layers") if family.experts else 0,
    )


# Switches of families that change the arithmetic, and the values that we compute.
_COMPUTED: dict[str, Any] = {
    "apply_residual_connection_post_layernorm": False,
    "post_layer_norm": True,
    "rmsnorm": True,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "use_bidirectional_attention": False,
    "embed_layernorm": False,
    "add_cross_attention": False,
}


def _refuse(fields: Fields) -> None:
    """Refuses what a family's config can ask for and no published model of it does."""
    for key, value in _COMPUTED.items():
        if fields.flag(key, value) is not value:
            raise fields.error(key, f"{str(value).lower()}: the other value is not supported")


def _positions(fields: Fields, family: Family) -> str:
    given = fields.get("position_embedding_type")
    if given is not None:
        if not isinstance(given, str) or given not in POSITIONS:
            raise fields.error("position_embedding_type", f"one of {', '.join(POSITIONS)}")
        if POSITIONS[given] == "learned" or family.positions != "learned":
            return POSITIONS[given]
        raise fields.error("position_embedding_type", "learned_absolute for this family")
    if family.positions == "rope_or_alibi":
        # Models with rotary embedding state the positions that they were trained with, those with ALiBi only the
        # length of their tokenizer.
        return "rope" if fields.get("max_position_embeddings") is not None else "alibi"
    return family.positions


def _rotary_size(fields: Fields, head_dim: int) -> int:
    """Elements of a head that are rotated."""
    parameters = fields.get("rope_parameters")
    parameters = parameters if isinstance(parameters, Mapping) else {}
    factor = parameters.get("partial_rotary_factor", fields.get("partial_rotary_factor", 1.0))
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor <= 1:
        raise ConfigError(f"{fields.where}: 'partial_rotary_factor' is {factor!r}", "it must be above 0 and at most 1")
    size = int(head_dim * factor)
    if size % 2 or not size:
        raise ConfigError(f"{fields.where}: 'partial_rotary_factor' {factor} of a head of {head_dim} is no pairs")
    return size


def _position_rows(fields: Fields) -> int:
    if fields.get("max_position_embeddings") is not None:
        return fields.integer("max_position_embeddings")
    return fields.integer("seq_length")


def _storage(fields: Fields, family: Family) -> Storage:
    stored = family.storage
    if fields.flag("stored_by_gguf", False):
        # Its converters have transposed the matrices and added to the norms.
        stored = replace(stored, transposed=False, norm_offset=0.0)
    normalised = stored.normalised_head and fields.get("vocab_size") != BAICHUAN1_VOCABULARY
    return replace(
        stored,
        normalised_head=normalised,
        pairs=_pairs(fields, stored.pairs),
    )


def _pairs(fields: Fields, usual: str) -> str:
    if fields.flag("use_rearrange_rope", False):
        # MindFormers' ChatGLM can be converted with its rows in our order.
        return "spread"
    # As `gguf_architectures` says of Llamas.
    return "neighbours" if fields.flag("rotary_neighbours", False) else usual


# Baichuan's first release has a plain output head, and nothing else in its config that tells.
BAICHUAN1_VOCABULARY = 64000


def _intermediate_size(fields: Fields, hidden: int) -> int:
    """As given, or a multiple of the width, or Llama's rule: 2/3 of 4 widths, scaled, rounded up to `multiple_of`."""
    if fields.get("intermediate_size") is not None:
        return fields.integer("intermediate_size")
    if fields.get("multiple_of") is None and fields.get("expand_ratio") is not None:
        return fields.integer("expand_ratio") * hidden
    if fields.get("multiple_of") is None:
        raise ConfigError(f"{fields.where}: neither 'intermediate_size' nor 'multiple_of' is given")
    width = 4 * hidden
    if fields.get("ffn_dim_multiplier") is not None:
        width = int((fields.number("ffn_dim_multiplier", 1.0) + 0.01) * width)
    multiple = fields.integer("multiple_of")
    return multiple * math.ceil(int(2 * width / 3) / multiple)


def _context_length(fields: Fields) -> int:
    """What the config asks for, and no more than the model can: its positions, times what scaling makes of them."""
    keys = ("max_position_embeddings", "model_max_length", "training_seqlen")
    own = next((key for key in keys if fields.get(key) is not None), None)
    length = fields.get("seq_length")
    if own is None and length is None:
        raise ConfigError(f"{fields.where}: neither 'max_position_embeddings' nor 'seq_length' is given")
    if own is None:
        return fields.integer("seq_length")
    limit = fields.integer(own)
    if length is None:
        return limit
    return min(fields.integer("seq_length"), max(limit, _scaled_limit(fields, limit)))


def _scaled_limit(fields: Fields, limit: int) -> int:
    scaling = _scaling(fields)
    if _kind(scaling) not in ("linear", "dynamic", "yarn"):
        return limit
    original = scaling.integer("original_max_position_embeddings", limit)
    return int(original * scaling.number("factor", 1.0))


def _scaling(fields: Fields) -> Fields:
    """transformers 4 writes `rope_theta` and `rope_scaling`; transformers 5 puts both into `rope_parameters`."""
    given = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    if not isinstance(given, Mapping):
        raise fields.error("rope_scaling", "a mapping")
    # Of a model whose kinds of layers differ, the layers that see everything.
    if isinstance(given.get("full_attention"), Mapping):
        given = given["full_attention"]
    return Fields(given, f"{fields.where}: rope_scaling")


# Kinds that are read as another one.
_RENAMED_KINDS = {"su": "longrope", "dynamic_ntk": "ntk"}


def _kind(scaling: Fields) -> str:
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if isinstance(kind, str):
        # Phi-3's first configs call their LongRoPE by other names.
        kind = "longrope" if scaling.get("short_factor") is not None else _RENAMED_KINDS.get(kind, kind)
    if not isinstance(kind, str) or kind not in ROPE_KINDS:
        raise ConfigError(f"{scaling.where}: rope_type '{kind}' is not supported", f"accepted: {', '.join(ROPE_KINDS)}")
    return kind


def _ropes(fields: Fields, family: Family, context: int) -> tuple[RopeConfig, RopeConfig | None]:
    """The rotary embedding, and that of layers with a window where it differs."""
    scaling = _scaling(fields)
    kind = _kind(scaling)
    theta = scaling.number("rope_theta", fields.number("rope_theta", 10000.0) * fields.number("rope_ratio", 1.0))
    rope = RopeConfig(
        theta=theta,
        kind=kind,
        factor=scaling.number("factor", 1.0),
        low_freq_factor=scaling.number("low_freq_factor", 1.0),
        high_freq_factor=scaling.number("high_freq_factor", 4.0),
        original_max_positions=scaling.integer("original_max_position_embeddings", 8192),
    )
    if kind in ("dynamic", "yarn", "longrope"):
        rope = _with_lengths(rope, fields, scaling, context)
    elif kind == "ntk":
        rope = _stretched(rope, fields, scaling, context)
    if not family.local_rope:
        return rope, None
    nested = (fields.get("rope_parameters") or {}).get("sliding_attention") or {}
    if not isinstance(nested, Mapping):
        raise fields.error("rope_parameters", "a mapping, or one for each kind of layer")
    local = Fields(nested, f"{fields.where}: rope_parameters of sliding_attention")
    if local.get("rope_type", "default") != "default":
        raise local.error("rope_type", "default: layers with a window are not scaled")
    return rope, RopeConfig(theta=local.number("rope_theta", fields.number("rope_local_base_freq", 10000.0)))


def _with_lengths(rope: RopeConfig, fields: Fields, scaling: Fields, context: int) -> RopeConfig:
    """Adds what the kinds need that depend on the model's lengths."""
    limit = fields.integer("max_position_embeddings", context)
    own = scaling.get("original_max_position_embeddings")
    # Phi-3 has it beside the scaling, not in it. A scaling that does not say it begins at the model's own length.
    place = scaling if own is not None else fields
    original = limit if rope.kind == "dynamic" else place.integer("original_max_position_embeddings", limit)
    rope = replace(rope, original_max_positions=original)
    if rope.kind == "dynamic":
        return replace(rope, length=context)
    if rope.kind == "yarn":
        # A weight of 0 is one that is not there.
        mscales = (scaling.number(key, 1.0) if scaling.get(key) else None for key in ("mscale", "mscale_all_dim"))
        factor = scaling.number("factor", limit / original)
        return replace(
            rope,
            factor=factor,
            attention_factor=scaling.number("attention_factor", yarn_attention_factor(factor, *mscales)),
            beta_fast=scaling.number("beta_fast", 32.0),
            beta_slow=scaling.number("beta_slow", 1.0),
            truncate=scaling.flag("truncate", True),
        )
    factor = scaling.number("factor", limit / original)
    return replace(
        rope,
        factor=factor,
        length=context,
        attention_factor=scaling.number("attention_factor", longrope_attention_factor(factor, original)),
        short_factors=_factors(fields, scaling, "short_factor"),
        long_factors=_factors(fields, scaling, "long_factor"),
    )


def _factors(fields: Fields, scaling: Fields, key: str) -> tuple[float, ...]:
    head_dim = fields.integer("head_dim", fields.integer("hidden_size") // fields.integer("num_attention_heads"))
    count = _rotary_size(fields, head_dim) // 2
    factors = scaling.get(key)
    is_list = isinstance(factors, (list, tuple)) and len(factors) == count
    if not is_list or any(isinstance(f, bool) or not isinstance(f, (int, float)) or not f > 0 for f in factors):
        raise scaling.error(key, f"a list of {count} positive numbers, one for each rotated pair")
    return tuple(float(factor) for factor in factors)


def _stretched(rope: RopeConfig, fields: Fields, scaling: Fields, context: int) -> RopeConfig:
    """NTK scaling, by a factor that is given, or by TeleChat's and MindFormers' rule from the length.

    The rule: the base grows by 2^n - 1 for n - 1 doublings of the length, begun ones included, and cosine and sine by a
    tenth of the logarithm.
    """
    if scaling.get("factor") is not None:
        return rope
    trained = fields.integer("training_seqlen", fields.integer("max_position_embeddings", context))
    base = fields.integer("base_seqlen", trained)
    length = max(context, trained)
    factor = max(1, 2 ** math.ceil(math.log2(length / base) + 1) - 1)
    return replace(rope, factor=float(factor), attention_factor=1.0 + 0.1 * math.log(length / trained))


def _windows(fields: Fields, family: Family, layers: int) -> tuple[int | None, ...]:
    """`layer_types` decides where it is given; before transformers 4.53, `max_window_layers` or a pattern did."""
    slides = family.sliding in ("always", "pattern")
    slides = slides or (family.sliding == "optional" and fields.flag("use_sliding_window", False))
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
    if family.sliding == "pattern":
        every = fields.integer("sliding_window_pattern")
        return tuple(window if (layer + 1) % every else None for layer in range(layers))
    first = 0 if family.sliding == "always" else fields.get("max_window_layers", layers)
    if type(first) is not int or first < 0:
        raise fields.error("max_window_layers", "the number of layers that see their whole context")
    return tuple(None if layer < first else window for layer in range(layers))
