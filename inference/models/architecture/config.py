"""The architecture of a decoder-only model, read from its `config.json` or a MindFormers YAML.

Knows sizes, rotary embedding and windows; knows nothing about tensors, files or devices. Keys are spelled as in Hugging
Face internally (`config_aliases`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from inference.errors import ConfigError
from inference.files.fields import Fields
from inference.files.values import COUNT, INTEGERS
from inference.models.architecture.config_aliases import translate_mindformers
from inference.models.architecture.experts import ExpertsConfig, ExpertsRule, read_experts
from inference.models.architecture.latent import LatentConfig, read_latent
from inference.models.architecture.rope import NO_ROPE, RopeConfig, alibi_slopes
from inference.models.architecture.rope_config import context_length, read_ropes, rotary_size, scaling_of
from inference.models.architecture.sizes import HEADS, HIDDEN, LAYERS, MULTIPLIER, RATIO, WIDTH, check_sizes

# Names of activations in configs -> the kernels' names.
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
LAYER_TYPES = ("full_attention", "sliding_attention")
# Names of position encodings in configs -> our names.
POSITIONS = {
    "rope": "rope",
    "partial_rope": "rope",
    "alibi": "alibi",
    "learned_absolute": "learned",
}


@dataclass(frozen=True)
class Storage:
    """How a family's checkpoints name and lay out the weights of the decoder block.

    Args:
        names: pairs of a regular expression and its replacement, which turn a tensor's name into Llama's.
        transposed: the layers' matrices are stored [in, out], except separate q, k and v.
        norm_offset: number to add to a norm's stored weights.
        normalized_head: divide each row of the output head by its length.
        pairs: which elements of a head of size D, of which R are rotated, form a rotary pair: i and i + R / 2 (halves),
            2i and 2i + 1 (neighbors), or i and i + D / 2 as in the kernels (spread).
    """

    names: tuple[tuple[str, str], ...] = ()
    transposed: bool = False
    norm_offset: float = 0.0
    normalized_head: bool = False
    pairs: str = "halves"


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and parts of a decoder.

    Args:
        windows: one entry per layer: how many positions back a token may attend (itself included); None for all.
        context_length: maximum length of a sequence in tokens, prompt and answer together.
        rotary_size: number of elements of a head that are rotated; 0 for a model without rotary embedding.
        local_rope: the rotary embedding of layers with a window, if it differs.
        rotated: one entry per layer: whether its queries and keys are rotated; None for all layers.
        qk_norm: queries and keys are normalized: each head, or all heads of a token together if `norms_all_heads`;
            before their rotation, or after it if `norms_rotated`.
        attention_scale: factor of the attention scores.
        softcap, logit_softcap: soft caps of attention scores and of logits; None for none.
        activation: the feed-forward's activation, as in `kernels.shapes`.
        gated: the feed-forward multiplies its activation by a second projection.
        layer_norm: norms are LayerNorm, not RMSNorm; with a bias if `norm_bias`.
        pre_norms: the inputs of attention and feed-forward are normalized.
        post_norms: the outputs of attention and feed-forward are normalized before they are added to the residual
            stream.
        parallel: attention and feed-forward read the same normalized input, and both are added to the residual stream.
        head_bias: the output head has a bias.
        alibi_slopes: how much each head's scores drop per position of distance (ALiBi); None without ALiBi.
        position_rows: rows of the table of learned positions; None for no table.
        embedding_scale: factor of the embeddings.
        logit_scale: factor of the logits; it is multiplied into the last norm.
        experts: the experts of the layers that have them; None for none.
        latent: latent attention, which replaces key/value heads; None for none.
        draft_layers: number of layers at the end of a checkpoint that are not run (multi-token prediction).
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
    norm_bias: bool = True
    pre_norms: bool = True
    post_norms: bool = False
    parallel: bool = False
    norms_all_heads: bool = False
    norms_rotated: bool = False
    head_bias: bool = False
    rotated: tuple[bool, ...] | None = None
    alibi_slopes: tuple[float, ...] | None = None
    position_rows: int | None = None
    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    storage: Storage = field(default_factory=Storage)
    experts: ExpertsConfig | None = None
    latent: LatentConfig | None = None
    draft_layers: int = 0

    def experts_of(self, layer: int) -> ExpertsConfig | None:
        """Returns the experts of a layer; None if it has a dense feed-forward."""
        return self.experts if self.experts and self.experts.layers[layer] else None

    @property
    def decoder_start(self) -> None:
        """None: an answer continues its prompt, and does not begin with a start token."""
        return None

    @property
    def cache_length(self) -> int:
        """Maximum number of cache positions that a request needs."""
        return self.context_length

    @property
    def query_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def cache_size(self) -> int:
        """Number of values per position in a layer's cache."""
        return self.latent.width if self.latent else 2 * self.kv_size

    @property
    def cache_vectors(self) -> int:
        """Number of vectors per position in a layer's cache, each of which has a scale if the cache is int8."""
        return 2 if self.latent else 2 * self.num_kv_heads

    @property
    def group_size(self) -> int:
        """Number of query heads that share one key/value head."""
        return self.num_heads // self.num_kv_heads

    @property
    def num_parameters(self) -> int:
        """Number of weights in matrices and in norms of the hidden size; excludes biases and the norms of heads."""
        attention = self.hidden_size * (2 * self.query_size + 2 * self.kv_size)
        if self.latent:
            attention = self.latent.num_parameters(self.hidden_size, self.num_heads)
        feed_forward = (3 if self.gated else 2) * self.intermediate_size
        norms = (1 if self.parallel else 2) * self.pre_norms + 2 * self.post_norms
        layers = self.num_layers * (attention + norms * self.hidden_size)
        for layer in range(self.num_layers):
            experts = self.experts_of(layer)
            layers += self.hidden_size * (experts.size if experts else feed_forward)
        rows = self.vocab_size * (1 if self.tie_embeddings else 2) + (self.position_rows or 0)
        return layers + (rows + 1) * self.hidden_size

    def rope_of(self, layer: int) -> RopeConfig:
        """Returns the rotary embedding of a layer."""
        if self.rotated and not self.rotated[layer]:
            return NO_ROPE
        return self.local_rope if self.local_rope and self.windows[layer] else self.rope

    def rotation(self, rope: RopeConfig) -> np.ndarray:
        """Returns the angle per position of each pair (i, i + D / 2) of a head, and its magnitude, float32 [2, D / 2].

        Pairs that are not rotated have the angle 0.
        """
        table = np.zeros((2, self.head_dim // 2), np.float32)
        table[1] = 1
        pairs = self.rotary_size // 2
        if pairs and rope != NO_ROPE:
            table[0, :pairs] = rope.inverse_frequencies(self.rotary_size)
            table[1, :pairs] = rope.attention_factor
        return table


@dataclass(frozen=True)
class Family:
    """What differs between families that share the decoder block.

    Args:
        qkv_bias, output_bias, mlp_bias, down_bias: biases that the family always has, regardless of the config.
        attention_bias_on_output: `attention_bias` also adds a bias to the output projection.
        sliding: which layers may have a window: none (never), all (always), those that the config's switches choose
            (optional), or all but every n-th (pattern).
        positions: rope, alibi or learned; or rope_or_alibi if the config decides.
        local_rope: layers with a window have their own rotary base.
        rotated: which layers are rotated if the config does not state it: all, or those with a window (windowed),
            provided that any layer has one.
        scaled_embeddings: embeddings are multiplied by the root of the hidden size.
        defaults: values for keys that the config does not have.
        experts: how experts are chosen, if the config has any; None if the family has none.
        latent: attention uses compressed keys and values (`models/architecture/latent.py`).
        norm_bias, pre_norms, parallel, norms_all_heads, norms_rotated, head_bias: as in `ModelConfig`.
        tokenizer: the tokenizer's class, for `tokenizer.load_tokenizer`, if it does something that no file states.
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
    rotated: str = "all"
    gated: bool = True
    layer_norm: bool = False
    norm_bias: bool = True
    pre_norms: bool = True
    post_norms: bool = False
    parallel: bool = False
    norms_all_heads: bool = False
    norms_rotated: bool = False
    head_bias: bool = False
    scaled_embeddings: bool = False
    storage: Storage = field(default_factory=Storage)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    experts: ExpertsRule | None = None
    latent: bool = False
    tokenizer: str | None = None


def read_model_config(values: Mapping[str, Any], family: Family, architecture: str, where: str) -> ModelConfig:
    """Reads an architecture from Hugging Face's keys (of transformers 4 or 5) or MindFormers'.

    Args:
        values: keys of `config.json`, overridden by a YAML's `model_config`.
        where: the file to name in errors.

    Raises:
        ConfigError: a size is missing or of the wrong type, or a feature is not supported.
    """
    # A null overrides a family's default: a Gemma without soft caps states them as null.
    fields = Fields({**family.defaults, **translate_mindformers(values)}, where)
    _refuse(fields)
    activation = fields.get("hidden_act", family.defaults.get("hidden_act", "silu"))
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise fields.error("hidden_act", f"one of {', '.join(ACTIVATIONS)}")
    hidden, heads = fields.integer("hidden_size", reader=HIDDEN), fields.integer("num_attention_heads", reader=HEADS)
    kv_heads = fields.integer("num_key_value_heads", heads, HEADS)
    if heads % kv_heads:
        raise fields.error("num_key_value_heads", f"a divisor of num_attention_heads ({heads})")
    if fields.get("head_dim") is None and hidden % heads and not family.latent:
        raise fields.error("num_attention_heads", f"a divisor of hidden_size ({hidden}), or head_dim must be given")
    latent = read_latent(fields, scaling_of(fields)) if family.latent else None
    head_dim = latent.rope if latent else fields.integer("head_dim", hidden // heads, WIDTH)
    if head_dim % 2:
        raise fields.error("head_dim", "even, because rotary embedding turns pairs")
    layers = fields.integer("num_hidden_layers", reader=LAYERS)
    positions = _positions(fields, family)
    attention_bias = fields.flag("attention_bias", False)
    every_bias = fields.flag("add_bias_linear", False) or fields.flag("use_bias", False)
    mlp_bias = fields.flag("mlp_bias", False) or every_bias
    context = context_length(fields)
    rope, local_rope = read_ropes(fields, family.local_rope, context)
    rotated = rotary_size(fields, head_dim) if positions == "rope" else 0
    if rotated == 2 and rope.kind in ("ntk", "dynamic"):
        raise fields.error("head_dim", f"4 or more, because rope scaling '{rope.kind}' spares the first pair")
    windows = _windows(fields, family, layers)
    # The residual stream divided by the residual multiplier gives the same norms, if their epsilon is divided by its
    # square.
    residual = fields.read_or("residual_multiplier", MULTIPLIER, 1.0)
    if residual != 1 and (family.qk_norm or family.post_norms):
        raise fields.error("residual_multiplier", "1 for this family")
    if family.layer_norm and fields.flag("use_qk_norm", False):
        raise fields.error("use_qk_norm", "false: heads with a LayerNorm of their own are not supported")
    usual_scale = fields.number("query_pre_attn_scalar", head_dim) ** -0.5
    model = ModelConfig(
        architecture=architecture,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=_intermediate_size(fields, hidden),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        norm_eps=fields.epsilon("rms_norm_eps", 1e-6) / residual**2,
        context_length=context,
        rope=rope,
        tie_embeddings=fields.flag("tie_word_embeddings", False),
        qkv_bias=fields.flag("qkv_bias", family.qkv_bias or attention_bias or every_bias),
        output_bias=family.output_bias
        or every_bias
        or fields.flag("attention_out_bias", False)
        or (attention_bias and family.attention_bias_on_output),
        mlp_bias=family.mlp_bias or mlp_bias,
        down_bias=family.down_bias or mlp_bias,
        qk_norm=family.qk_norm or fields.flag("use_qk_norm", False),
        windows=windows,
        rotary_size=rotated,
        attention_scale=fields.read_or("attention_multiplier", MULTIPLIER, usual_scale),
        local_rope=local_rope,
        softcap=fields.optional_number("attn_logit_softcapping"),
        logit_softcap=fields.optional_number("final_logit_softcapping"),
        activation=ACTIVATIONS[activation],
        gated=family.gated,
        layer_norm=family.layer_norm,
        norm_bias=family.norm_bias,
        pre_norms=family.pre_norms,
        post_norms=family.post_norms,
        parallel=family.parallel or fields.flag("use_parallel_residual", False),
        norms_all_heads=family.norms_all_heads,
        norms_rotated=family.norms_rotated,
        head_bias=family.head_bias,
        rotated=_rotated(fields, family, windows),
        alibi_slopes=alibi_slopes(heads) if positions == "alibi" else None,
        position_rows=_position_rows(fields) if positions == "learned" else None,
        embedding_scale=fields.read_or(
            "embedding_multiplier", MULTIPLIER, hidden**0.5 if family.scaled_embeddings else 1.0
        )
        / residual,
        logit_scale=fields.read_or("logit_scale", MULTIPLIER, 1.0) / fields.read_or("logits_scaling", MULTIPLIER, 1.0),
        storage=_storage(fields, family),
        experts=read_experts(fields, family.experts, layers) if family.experts else None,
        latent=latent,
        draft_layers=fields.count("num_nextn_predict_layers") if family.experts else 0,
    )
    check_sizes(model, where)
    return model


# Config switches that change the arithmetic, and the only values that we support.
_COMPUTED: dict[str, Any] = {
    "apply_residual_connection_post_layernorm": False,
    "post_layer_norm": True,
    "rmsnorm": True,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "use_bidirectional_attention": False,
    "embed_layernorm": False,
    "add_cross_attention": False,
    "qk_layernorm": False,
}


def _refuse(fields: Fields) -> None:
    """Refuses features that a family's config allows but no published model uses."""
    for key, value in _COMPUTED.items():
        if fields.flag(key, value) is not value:
            raise fields.error(key, f"{str(value).lower()}: the other value is not supported")


def _rotated(fields: Fields, family: Family, windows: tuple[int | None, ...]) -> tuple[bool, ...] | None:
    """Returns which layers are rotated; None for all.

    SmolLM3's keys: a list with 0 for a layer without rotary embedding, or every how many layers there is one.
    """
    stated, layers = fields.read("no_rope_layers", INTEGERS), len(windows)
    if stated is not None:
        if len(stated) < layers:
            raise fields.error("no_rope_layers", f"a list with an entry for each of the {layers} layers")
        return tuple(bool(flag) for flag in stated[:layers])
    if fields.get("no_rope_layer_interval") is not None:
        every = fields.integer("no_rope_layer_interval")
        return tuple((layer + 1) % every != 0 for layer in range(layers))
    if family.rotated == "windowed" and any(windows):
        return tuple(window is not None for window in windows)
    return None


def _positions(fields: Fields, family: Family) -> str:
    given = fields.get("position_embedding_type")
    if given is not None:
        if not isinstance(given, str) or given not in POSITIONS:
            raise fields.error("position_embedding_type", f"one of {', '.join(POSITIONS)}")
        if POSITIONS[given] == "learned" or family.positions != "learned":
            return POSITIONS[given]
        raise fields.error("position_embedding_type", "learned_absolute for this family")
    if family.positions == "rope_or_alibi":
        # Models with rotary embedding state the number of positions they were trained with; those with ALiBi state
        # only their tokenizer's length.
        return "rope" if fields.get("max_position_embeddings") is not None else "alibi"
    return family.positions


def _position_rows(fields: Fields) -> int:
    if fields.get("max_position_embeddings") is not None:
        return fields.integer("max_position_embeddings")
    return fields.integer("seq_length")


def _storage(fields: Fields, family: Family) -> Storage:
    stored = family.storage
    if fields.flag("stored_by_gguf", False):
        # llama.cpp's converter has already transposed the matrices and added the offset to the norms.
        stored = replace(stored, transposed=False, norm_offset=0.0)
    normalized = stored.normalized_head and fields.get("vocab_size") != BAICHUAN1_VOCABULARY
    return replace(
        stored,
        normalized_head=normalized,
        pairs=_pairs(fields, stored.pairs),
    )


def _pairs(fields: Fields, usual: str) -> str:
    if fields.flag("use_rearrange_rope", False):
        # MindFormers can convert ChatGLM with the rows already in our order.
        return "spread"
    # GGUF stores Llama's rows this way; see `gguf_names`.
    return "neighbors" if fields.flag("rotary_neighbors", False) else usual


# Baichuan's first release has a plain output head; only the vocabulary size in its config shows which release it is.
BAICHUAN1_VOCABULARY = 64000


def _intermediate_size(fields: Fields, hidden: int) -> int:
    """Returns the given size, or a multiple of `hidden`, or Llama's size.

    Llama's is 2/3 of 4 * hidden, scaled, and rounded up to a multiple of `multiple_of`.
    """
    if fields.get("intermediate_size") is not None:
        return fields.integer("intermediate_size", reader=WIDTH)
    if fields.get("multiple_of") is None and fields.get("expand_ratio") is not None:
        return fields.integer("expand_ratio", reader=RATIO) * hidden
    if fields.get("multiple_of") is None:
        raise ConfigError(f"{fields.where}: neither 'intermediate_size' nor 'multiple_of' is given")
    width = 4 * hidden
    if fields.get("ffn_dim_multiplier") is not None:
        width = int((fields.read_or("ffn_dim_multiplier", MULTIPLIER, 1.0) + 0.01) * width)
    multiple = fields.integer("multiple_of", reader=WIDTH)
    return multiple * math.ceil(int(2 * width / 3) / multiple)


def _windows(fields: Fields, family: Family, layers: int) -> tuple[int | None, ...]:
    """Returns each layer's window.

    `layer_types` decides if it is given; before transformers 4.53, `max_window_layers` or a pattern did.
    """
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
        pattern = fields.get("sliding_window_pattern")
        if isinstance(pattern, str):
            # EXAONE 4: L for a window and G for none, repeated; the last layer has none.
            if not pattern or set(pattern) - set("LG"):
                raise fields.error("sliding_window_pattern", "a number, or a text of L and G")
            last = layers - 1
            return tuple(
                window if pattern[layer % len(pattern)] == "L" and layer < last else None for layer in range(layers)
            )
        every = fields.integer("sliding_window_pattern")
        return tuple(window if (layer + 1) % every else None for layer in range(layers))
    first = 0 if family.sliding == "always" else fields.read_or("max_window_layers", COUNT, layers)
    return tuple(None if layer < first else window for layer in range(layers))
