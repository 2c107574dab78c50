"""Translate the keys of a model's config to Hugging Face's usual names.

Knows the names that MindFormers and some families use; knows nothing about what a value means to a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inference.config.key_aliases import aliases_of_a_model
from inference.errors import ConfigError
from inference.files.values import Reader, shown
from inference.models.architecture.experts import from_moe_config
from inference.models.architecture.sizes import FACTOR, THETA

OTHER_NAMES = aliases_of_a_model()


def lay_over(own: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys of config.json overridden by a YAML's keys, even if they spell a key differently.

    transformers 5 puts transformers 4's `rope_theta` and `rope_scaling` into `rope_parameters`. If the YAML has one of
    the two, `rope_parameters` is split, so that the YAML wins.
    """
    base = translate_mindformers(own)
    top = translate_mindformers(given)
    if {"rope_theta", "rope_scaling"} & set(top) and isinstance(base.get("rope_parameters"), Mapping):
        scaling = dict(base.pop("rope_parameters"))
        if isinstance(scaling.get("full_attention"), Mapping):
            local = scaling.get("sliding_attention")
            if isinstance(local, Mapping):
                base = {"rope_local_base_freq": local.get("rope_theta"), **base}
            scaling = dict(scaling["full_attention"])
        base = {"rope_theta": scaling.pop("rope_theta", None), "rope_scaling": scaling, **base}
    return {**base, **top}


def translate_mindformers(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the same architecture with Hugging Face's usual key names."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        name = OTHER_NAMES.get(key, key)
        # A null in one spelling does not override a value in the other.
        if value is not None or name not in out:
            out[name] = value
    if out.get("type") == "GPT2Config" and out.get("hidden_act") == "gelu":
        # MindSpore's GELU is the tanh approximation.
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
        raise ConfigError(f"extend_method {shown(method)} is not supported", f"accepted: {', '.join(EXTEND_METHODS)}")
    factor = out.pop("scaling_factor", None)
    wants = EXTEND_METHODS[method]
    if wants is not None and not wants.takes(factor):
        raise ConfigError(
            f"'scaling_factor' is {shown(factor)}", f"for extend_method {method} it must be {wants.accepted}"
        )
    if method == "PI":
        out["rope_scaling"] = {"type": "linear", "factor": factor}
    elif method == "NTK":
        # MindFormers multiplies the base by the factor.
        out["rope_theta"] = THETA.read(out.get("rope_theta") or 10000.0, "'rope_theta'") * factor
    elif method in ("LINEAR", "LLAMA3", "YARN"):
        out["rope_scaling"] = {**factor, "rope_type": method.lower()}
    elif method == "DYNAMIC_NTK":
        out["rope_scaling"] = {"rope_type": "dynamic_ntk"}
    return out


# MindFormers' methods of rotary scaling, and the reader of `scaling_factor` for each.
_SCALING: Reader[Any] = Reader("a mapping with 'factor'", lambda value: isinstance(value, Mapping), dict)
EXTEND_METHODS: dict[str, Reader[Any] | None] = {
    "NONE": None,
    "PI": FACTOR,
    "NTK": FACTOR,
    "DYNAMIC_NTK": None,
    "LINEAR": _SCALING,
    "LLAMA3": _SCALING,
    "YARN": _SCALING,
}
