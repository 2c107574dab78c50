"""Read rotary embedding from a config: base, scaling, and the lengths that they depend on.

Knows the keys of transformers 4 and 5 and those that families add; the arithmetic is in `rope`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from inference.errors import ConfigError
from inference.files.fields import Fields
from inference.files.values import FRACTION, list_of
from inference.models.architecture.rope import ROPE_KINDS, RopeConfig, longrope_attention_factor, yarn_attention_factor
from inference.models.architecture.sizes import FACTOR, THETA


def rotary_size(fields: Fields, head_dim: int) -> int:
    """Returns the number of elements of a head that are rotated."""
    key, given = "partial_rotary_factor", fields.get("rope_parameters")
    place = Fields(given, f"{fields.where}: rope_parameters") if isinstance(given, Mapping) and key in given else fields
    factor = place.read_or(key, FRACTION, 1.0)
    size = int(head_dim * factor)
    if size % 2 or not size:
        raise ConfigError(
            f"{fields.where}: 'partial_rotary_factor' {factor} of a head of {head_dim} does not give whole pairs"
        )
    return size


def context_length(fields: Fields) -> int:
    """Returns the requested length, up to the model's limit: its positions, extended by rotary scaling."""
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
    scaling = scaling_of(fields)
    if _kind(scaling) not in ("linear", "dynamic", "yarn"):
        return limit
    original = scaling.integer("original_max_position_embeddings", limit)
    return int(original * scaling.read_or("factor", FACTOR, 1.0))


def scaling_of(fields: Fields) -> Fields:
    """Returns the rotary settings: `rope_scaling` of transformers 4, or `rope_parameters` of transformers 5."""
    given = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    if not isinstance(given, Mapping):
        raise fields.error("rope_scaling", "a mapping")
    # If the settings differ by kind of layer, take those of layers with full attention.
    if isinstance(given.get("full_attention"), Mapping):
        given = given["full_attention"]
    return Fields(given, f"{fields.where}: rope_scaling")


# Other names of kinds.
_RENAMED_KINDS = {"su": "longrope", "dynamic_ntk": "ntk"}


def _kind(scaling: Fields) -> str:
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if isinstance(kind, str):
        # Phi-3's first configs use other names for LongRoPE.
        kind = "longrope" if scaling.get("short_factor") is not None else _RENAMED_KINDS.get(kind, kind)
    if not isinstance(kind, str) or kind not in ROPE_KINDS:
        raise ConfigError(f"{scaling.where}: rope_type '{kind}' is not supported", f"accepted: {', '.join(ROPE_KINDS)}")
    return kind


def read_ropes(fields: Fields, has_local: bool, context: int) -> tuple[RopeConfig, RopeConfig | None]:
    """Reads the rotary embedding, and that of layers with a window if it differs."""
    scaling = scaling_of(fields)
    kind = _kind(scaling)
    ratio = fields.read_or("rope_ratio", FACTOR, 1.0)
    own = fields.read_or("rope_theta", THETA, 10000.0) * ratio
    theta = THETA.read(scaling.read_or("rope_theta", THETA, own), f"{fields.where}: 'rope_theta' times 'rope_ratio'")
    rope = RopeConfig(
        theta=theta,
        kind=kind,
        factor=scaling.read_or("factor", FACTOR, 1.0),
        low_freq_factor=scaling.read_or("low_freq_factor", FACTOR, 1.0),
        high_freq_factor=scaling.read_or("high_freq_factor", FACTOR, 4.0),
        original_max_positions=scaling.integer("original_max_position_embeddings", 8192),
    )
    if kind == "dynamic" and scaling.get("alpha") is not None:
        # Hunyuan calls it dynamic, and states a factor that no length changes.
        rope = replace(rope, kind="ntk", factor=scaling.read_or("alpha", FACTOR, 1.0))
    elif kind in ("dynamic", "yarn", "longrope"):
        rope = _with_lengths(rope, fields, scaling, context)
    elif kind == "ntk":
        rope = _stretched(rope, fields, scaling, context)
    if not has_local:
        return rope, None
    nested = (fields.get("rope_parameters") or {}).get("sliding_attention") or {}
    if not isinstance(nested, Mapping):
        raise fields.error("rope_parameters", "a mapping, or one for each kind of layer")
    local = Fields(nested, f"{fields.where}: rope_parameters of sliding_attention")
    if local.get("rope_type", "default") != "default":
        raise local.error("rope_type", "default: layers with a window are not scaled")
    return rope, RopeConfig(
        theta=local.read_or("rope_theta", THETA, fields.read_or("rope_local_base_freq", THETA, 10000.0))
    )


def _with_lengths(rope: RopeConfig, fields: Fields, scaling: Fields, context: int) -> RopeConfig:
    """Adds the values that the length-dependent kinds need."""
    limit = fields.integer("max_position_embeddings", context)
    own = scaling.get("original_max_position_embeddings")
    # Phi-3 has this key beside the scaling, not in it. Without the key, scaling starts at the model's own length.
    place = scaling if own is not None else fields
    original = limit if rope.kind == "dynamic" else place.integer("original_max_position_embeddings", limit)
    rope = replace(rope, original_max_positions=original)
    if rope.kind == "dynamic":
        return replace(rope, length=context)
    if rope.kind == "yarn":
        # A weight of 0 counts as missing.
        mscales = (
            scaling.read_or(key, FACTOR, 1.0) if scaling.get(key) else None for key in ("mscale", "mscale_all_dim")
        )
        factor = scaling.read_or("factor", FACTOR, limit / original)
        return replace(
            rope,
            factor=factor,
            attention_factor=scaling.read_or("attention_factor", FACTOR, yarn_attention_factor(factor, *mscales)),
            beta_fast=scaling.read_or("beta_fast", FACTOR, 32.0),
            beta_slow=scaling.read_or("beta_slow", FACTOR, 1.0),
            truncate=scaling.flag("truncate", True),
        )
    factor = scaling.read_or("factor", FACTOR, limit / original)
    return replace(
        rope,
        factor=factor,
        length=context,
        attention_factor=scaling.read_or("attention_factor", FACTOR, longrope_attention_factor(factor, original)),
        short_factors=_factors(fields, scaling, "short_factor"),
        long_factors=_factors(fields, scaling, "long_factor"),
    )


def _factors(fields: Fields, scaling: Fields, key: str) -> tuple[float, ...]:
    head_dim = fields.integer("head_dim", fields.integer("hidden_size") // fields.integer("num_attention_heads"))
    count = rotary_size(fields, head_dim) // 2
    accepted = f"a list of {count} positive numbers of at most 10^6, one for each rotated pair"
    factors = scaling.read_or(key, list_of(FACTOR, accepted), [])
    if len(factors) != count:
        raise scaling.error(key, accepted)
    return tuple(factors)


def _stretched(rope: RopeConfig, fields: Fields, scaling: Fields, context: int) -> RopeConfig:
    """Sets NTK scaling from a given factor, or from the length by the rule of TeleChat and MindFormers.

    The rule: for n - 1 doublings of the length (rounded up), the factor is 2^n - 1. Cosine and sine grow by a tenth of
    the logarithm of length / trained length.
    """
    if scaling.get("factor") is not None:
        return rope
    trained = fields.integer("training_seqlen", fields.integer("max_position_embeddings", context))
    base = fields.integer("base_seqlen", trained)
    length = max(context, trained)
    factor = max(1, 2 ** math.ceil(math.log2(length / base) + 1) - 1)
    return replace(rope, factor=float(factor), attention_factor=1.0 + 0.1 * math.log(length / trained))
