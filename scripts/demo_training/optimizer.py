"""Muon for the linear layers, Adam for the rest, and a schedule of warm-up, constant rate and linear decay.

Muon: momentum whose update is orthogonalized by five Newton-Schulz steps (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon/). Matrices of one shape are orthogonalized together.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

# The quintic's coefficients from the reference above: they increase small singular values fastest.
QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Return matrices [N, rows, columns] with their singular values moved towards 1."""
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if is_tall else matrices
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    a, b, c = QUINTIC
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.transpose(1, 2) if is_tall else x


class Muon:
    """Muon with Nesterov momentum and decoupled weight decay over two-dimensional parameters."""

    def __init__(self, parameters: list[nn.Parameter], rate: float, momentum: float = 0.95, decay: float = 0.0):
        self.rate, self.momentum, self.decay = rate, momentum, decay
        self._groups: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for parameter in parameters:
            self._groups[parameter.shape].append(parameter)
        self._velocity = {shape: torch.zeros(len(group), *shape) for shape, group in self._groups.items()}

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """Update the parameters at `rate * scale`, and clear their gradients."""
        for shape, group in self._groups.items():
            gradients = torch.stack([parameter.grad for parameter in group])
            velocity = self._velocity[shape].mul_(self.momentum).add_(gradients)
            updates = orthogonalise(gradients + self.momentum * velocity)
            rate = self.rate * scale * max(1.0, shape[0] / shape[1]) ** 0.5
            for parameter, update in zip(group, updates, strict=True):
                parameter.mul_(1 - self.rate * scale * self.decay).sub_(update, alpha=rate)
                parameter.grad = None


class Optimizer:
    """Muon for the linear layers and Adam for the rest of a model, and the schedule of `steps` updates."""

    def __init__(self, model: nn.Module, steps: int, muon_rate: float, adam_rate: float, decay: float):
        hidden = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
        matrices = set(hidden)
        others = [parameter for parameter in model.parameters() if parameter not in matrices]
        self.steps, self.adam_rate = steps, adam_rate
        self.muon = Muon(hidden, muon_rate, decay=decay)
        self.adam = torch.optim.Adam(others, lr=adam_rate, betas=(0.9, 0.98))

    def scale(self, step: int) -> float:
        """Return the fraction of the full rate at `step`: 2 % warm-up, constant, linear decay over the last 60 %."""
        progress = step / self.steps
        return min(1.0, (progress + 1e-3) / 0.02, (1 - progress) / 0.6)

    def step(self, step: int) -> None:
        scale = self.scale(step)
        for group in self.adam.param_groups:
            group["lr"] = self.adam_rate * scale
        self.muon.step(scale)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
