"""The experts of a mixture-of-experts model, read from its `config.json`.

Knows the number of experts, how they are chosen for a token and which layers have them; knows nothing about tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from inference.config.key_aliases import MOE_CONFIG_ALIASES
from inference.files.fields import Fields
from inference.files.values import INTEGERS
from inference.kernels.formats import with_room
from inference.kernels.shapes import Routing
from inference.models.architecture.sizes import EXPERTS, MOST_EXPERTS, SHARED_EXPERTS, WIDTH

SCORING = ("softmax", "sigmoid")
# Number of best experts whose scores add up to a group's score: 1 in DeepSeek-V2, 2 in V3, whose scores are corrected.
GROUP_BEST = {"greedy": 1, "group_limited_greedy": 1, "noaux_tc": 2}


@dataclass(frozen=True)
class ExpertsRule:
    """A family's values for settings that config.json may omit.

    Args:
        chosen: experts per token, if the config omits it.
        normalize: whether the weights of the chosen experts add up to 1, if the config omits it.
        method: how experts are chosen (`GROUP_BEST`), if the config omits it.
    """

    chosen: int | None = None
    normalize: bool = False
    method: str = "greedy"


@dataclass(frozen=True)
class ExpertsConfig:
    """Sizes of the experts.

    Args:
        width: intermediate size of an expert.
        shared_width: intermediate size of the shared expert, which every token uses; 0 for none.
        shared_gate: the shared expert's output is scaled by the sigmoid of its own gate.
        corrected: a stored bias affects which experts are chosen, but not their weights.
        layers: one entry per layer: whether it has experts; the others have a dense feed-forward.
    """

    routing: Routing
    width: int
    shared_width: int
    shared_gate: bool
    corrected: bool
    layers: tuple[bool, ...]

    @property
    def size(self) -> int:
        """Number of weights of all experts of a layer, per column of the residual stream."""
        routing = self.routing
        return 3 * (routing.experts * self.width + self.shared_width) + routing.experts + self.shared_gate


def from_moe_config(section: Mapping[str, Any]) -> dict[str, Any]:
    """Returns MindFormers' `moe_config` in Hugging Face's names; empty if it has only one expert, which means none."""
    if section.get("expert_num") in (None, 1):
        return {}
    keys = {ours: section[theirs] for theirs, ours in MOE_CONFIG_ALIASES.items() if section.get(theirs) is not None}
    if section.get("use_gating_sigmoid"):
        keys["scoring_func"] = "sigmoid"
    # One expert per token, unless the section states more.
    return {"num_experts_per_tok": 1, **keys}


def read_experts(fields: Fields, rule: ExpertsRule, num_layers: int) -> ExpertsConfig | None:
    """Reads the experts from config.json; None if it has none, or no layer has them.

    Raises:
        ConfigError: a size is missing or does not fit another, or the routing method is unknown.
    """
    if fields.get("num_experts") is None:
        return None
    count = fields.integer("num_experts", reader=EXPERTS)
    if count * num_layers > MOST_EXPERTS:
        raise fields.error("num_experts", f"at most {MOST_EXPERTS // num_layers} for {num_layers} layers")
    layers = _layers(fields, num_layers)
    if not any(layers):
        return None
    routing = _routing(fields, rule, count)
    width_key = "intermediate_size" if fields.get("moe_intermediate_size") is None else "moe_intermediate_size"
    width = fields.integer(width_key, reader=WIDTH)
    has_gate = fields.get("shared_expert_intermediate_size") is not None
    shared = fields.read_or("n_shared_experts", SHARED_EXPERTS, 0) * width
    if has_gate:
        shared = fields.integer("shared_expert_intermediate_size", reader=WIDTH)
    return ExpertsConfig(routing, width, shared, has_gate, _method(fields, rule) == "noaux_tc", layers)


def _method(fields: Fields, rule: ExpertsRule) -> str:
    method = fields.get("topk_method", rule.method)
    if not isinstance(method, str) or method not in GROUP_BEST:
        raise fields.error("topk_method", f"one of {', '.join(GROUP_BEST)}")
    return method


def _routing(fields: Fields, rule: ExpertsRule, count: int) -> Routing:
    method = _method(fields, rule)
    scoring = fields.get("scoring_func", "sigmoid" if method == "noaux_tc" else "softmax")
    if scoring not in SCORING:
        raise fields.error("scoring_func", f"one of {', '.join(SCORING)}")
    chosen = fields.integer("num_experts_per_tok", rule.chosen)
    groups, open_groups = (
        (1, 1) if method == "greedy" else (fields.integer("n_group", 1), fields.integer("topk_group", 1))
    )
    best = GROUP_BEST[method]
    if count % groups or (groups > 1 and count // groups < best):
        raise fields.error("n_group", f"a divisor of the number of experts ({count}) that leaves {best} or more each")
    if open_groups > groups:
        raise fields.error("topk_group", f"at most n_group ({groups})")
    if chosen > open_groups * (count // groups):
        raise fields.error(
            "num_experts_per_tok", f"at most the experts to choose from ({open_groups * count // groups})"
        )
    return Routing(
        experts=count,
        chosen=chosen,
        scoring=scoring,
        normalize=fields.flag("norm_topk_prob", rule.normalize),
        scale=fields.number("routed_scaling_factor", 1.0),
        groups=groups,
        chosen_groups=open_groups,
        group_best=best,
    )


def _layers(fields: Fields, num_layers: int) -> tuple[bool, ...]:
    """Returns which layers have experts.

    Qwen's keys: every `decoder_sparse_step`-th layer, except those in `mlp_only_layers`. DeepSeek's keys: every
    `moe_layer_freq`-th layer, starting at `first_k_dense_replace`.
    """
    step, frequency = fields.integer("decoder_sparse_step", 1), fields.integer("moe_layer_freq", 1)
    first, dense = fields.count("first_k_dense_replace"), fields.read("mlp_only_layers", INTEGERS) or []
    return tuple(
        layer >= first and layer % frequency == 0 and (layer + 1) % step == 0 and layer not in dense
        for layer in range(num_layers)
    )


def mindformers_gate_up(stored: np.ndarray, experts: int) -> np.ndarray:
    """Rearranges MindFormers' experts: [experts * hidden, 2 * width] -> [experts * 2 * room, hidden], gate above up."""
    by_expert = stored.reshape(experts, len(stored) // experts, 2, -1).transpose(0, 2, 3, 1)
    return with_room(by_expert.reshape(2 * experts, *by_expert.shape[2:]))


def mindformers_down(stored: np.ndarray, experts: int) -> np.ndarray:
    """Rearranges MindFormers' experts: [experts * width, hidden] -> [experts * room, width]."""
    return with_room(stored.reshape(experts, len(stored) // experts, -1).transpose(0, 2, 1))
