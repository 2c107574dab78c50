"""Checks that expert routing is unambiguous for every token of a golden file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

ROUTER_NOISE = 1e-4


def routes_are_clear(model: Any, rows: Sequence[list[int]]) -> bool:
    """Whether routers perturbed by a hundred times the rounding error choose the same experts for every token.

    Args:
        rows: token ids.
    """
    expected = [_chosen_experts(model, row) for row in rows]
    weights = [module.weight for module in _routers(model)]
    kept = [weight.detach().clone() for weight in weights]
    generator = torch.Generator().manual_seed(0)
    clear = True
    for _ in range(3):
        for weight, value in zip(weights, kept, strict=True):
            noise = torch.randn(value.shape, generator=generator)
            weight.data = value * (1 + ROUTER_NOISE * noise)
        for row, wanted in zip(rows, expected, strict=True):
            found = _chosen_experts(model, row)
            clear &= all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    for weight, value in zip(weights, kept, strict=True):
        weight.data = value
    return clear


@torch.no_grad()
def _chosen_experts(model: Any, tokens: list[int]) -> list[torch.Tensor]:
    """Return every token's experts in every layer, sorted; empty if the model has no routers."""
    routers = _routers(model)
    if not routers:
        return []
    seen: list[torch.Tensor] = []
    hooks = [
        module.register_forward_hook(lambda module, inputs, output: seen.append(output[2].sort(dim=-1).values))
        for module in routers
    ]
    model(torch.tensor([tokens]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return seen


def _routers(model: Any) -> list[torch.nn.Module]:
    if not isinstance(model, torch.nn.Module):
        return []
    return [module for module in model.modules() if type(module).__name__.lower().endswith("topkrouter")]
