"""Feed-forward sublayers: dense and mixture-of-experts."""

from __future__ import annotations

from collections.abc import Mapping

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

from inference.kernels.formats import whole_panels
from inference.kernels.shapes import ExpertsShape, FeedForwardShape, Part, Routing
from inference.kernels.stock.geometry import MASKED
from inference.kernels.stock.layers import (
    Activate,
    AdaptedLinear,
    LinearResidual,
    Parts,
    RMSNorm,
    norm_of,
    optional,
    post_norm_of,
)
from inference.kernels.weight import Weight


class FeedForwardSublayer(nn.Cell):
    """x + down(activation(gate(norm(x))) * up(norm(x))); with a post-norm, x + post_norm(down(...))."""

    def __init__(self, shape: FeedForwardShape, weights: Mapping[str, Weight], part: Part | None = None):
        super().__init__()
        self.norm = norm_of(weights, shape.eps)
        self.gate_up = AdaptedLinear(weights["gate_up"], optional(weights, "gate_up_bias"))
        self.activation = Activate(shape)
        bias, post_norm = optional(weights, "down_bias"), post_norm_of(weights, shape.eps)
        self.down = LinearResidual(weights["down"], bias, post_norm, part)

    def construct(self, x: Tensor, geometry: tuple) -> Tensor:
        return self.add(self.norm(x), x, geometry)

    def add(self, normed: Tensor, x: Tensor, geometry: tuple) -> Tensor:
        """Return x + the feed-forward of an input that is already normalized."""
        return self.down(self.activation(self.gate_up(normed, geometry)), x, geometry)


class Router(nn.Cell):
    """x [T, hidden] -> the weight of every expert [T, experts], 0 for those not chosen.

    Uses masks instead of indices, so that shapes do not depend on values.
    """

    def __init__(self, routing: Routing, correction: Parameter | None = None):
        super().__init__()
        self.routing = routing
        self.has_correction = correction is not None
        if correction is not None:
            self.correction = correction
        self.topk = ops.TopK(sorted=True)
        self.one_hot = ops.OneHot()
        self.on, self.off = Tensor(1.0, ms.float32), Tensor(0.0, ms.float32)
        self.sum = ops.ReduceSum()
        self.softmax, self.sigmoid = ops.Softmax(-1), ops.Sigmoid()

    def best(self, scores: Tensor, count: int, total: int) -> Tensor:
        """Return 1 for the `count` largest of each row of [T, total], 0 for the others."""
        _, indices = self.topk(scores, count)
        return self.sum(self.one_hot(indices, total, self.on, self.off), 1)

    def construct(self, logits: Tensor) -> Tensor:
        routing = self.routing
        scores = self.sigmoid(logits) if routing.scoring == "sigmoid" else self.softmax(logits)
        choice = scores + self.correction if self.has_correction else scores
        if routing.groups > 1:
            size = routing.experts // routing.groups
            best, _ = self.topk(choice.reshape(-1, routing.groups, size), routing.group_best)
            is_open = self.best(self.sum(best, -1), routing.chosen_groups, routing.groups)  # [T, groups]
            is_open = ops.expand_dims(is_open, 2) + ops.zeros((1, 1, size), ms.float32)
            choice = choice + (is_open.reshape(-1, routing.experts) - 1) * -MASKED
        weights = scores * self.best(choice, routing.chosen, routing.experts)
        if routing.normalize:
            weights = weights / (self.sum(weights, 1).reshape(-1, 1) + 1e-20)
        return weights * routing.scale


class GatedExperts(nn.Cell):
    """x [T, hidden], weights [T, experts] -> the weighted sum of the experts' outputs [T, hidden].

    Computes every expert for every token, because stock CPU operators have no grouped matrix product.

    Args:
        gate_up: [experts * 2 * room, hidden], each expert's gate above its up, both padded to whole panels.
        down: [experts * room, width].
    """

    def __init__(self, experts: int, hidden: int, width: int, gate_up: Weight, down: Weight):
        super().__init__()
        self.experts, self.width, self.room = experts, width, whole_panels(width)
        self.gate_up, self.down = AdaptedLinear(gate_up), Parts(experts, hidden, down)
        self.silu, self.sum = nn.SiLU(), ops.ReduceSum()

    def construct(self, x: Tensor, weights: Tensor, geometry: tuple) -> Tensor:
        gate_up = self.gate_up(x, geometry).reshape(-1, self.experts, 2, self.room)
        gated = self.silu(gate_up[:, :, 0, : self.width]) * gate_up[:, :, 1, : self.width] * ops.expand_dims(weights, 2)
        gated = ops.transpose(gated, (1, 0, 2))  # [experts, T, width]
        return self.sum(self.down(gated, geometry), 0)


class ExpertsSublayer(nn.Cell):
    """x + the experts' outputs for norm(x), plus the shared expert's if there is one."""

    def __init__(self, shape: ExpertsShape, weights: Mapping[str, Weight], part: Part | None = None):
        super().__init__()
        self.norm = RMSNorm(weights["norm"].data, shape.eps)
        self.logits = AdaptedLinear(weights["router"])
        self.router = Router(shape.routing, optional(weights, "correction"))
        sizes = (shape.routing.experts, shape.hidden, shape.width)
        self.experts = GatedExperts(*sizes, weights["gate_up"], weights["down"])
        self.count, self.has_shared, self.has_gate = shape.routing.experts, shape.shared_width > 0, shape.shared_gate
        if self.has_shared:
            shared = weights["shared_gate_up"], weights["shared_down"]
            self.shared = GatedExperts(1, shape.hidden, shape.shared_width, *shared)
        self.sigmoid, self.ones_like = ops.Sigmoid(), ops.OnesLike()
        self.is_shared = part is not None
        if part is not None:
            self.sum = ops.AllReduce(group=part.group)

    def construct(self, x: Tensor, geometry: tuple) -> Tensor:
        normed = self.norm(x)
        logits = self.logits(normed, geometry)
        answers = self.experts(normed, self.router(logits[:, : self.count]), geometry)
        if self.has_shared:
            gate = logits[:, self.count :] if self.has_gate else logits[:, :1]
            scale = self.sigmoid(gate) if self.has_gate else self.ones_like(gate)
            answers = answers + self.shared(normed, scale, geometry)
        if self.is_shared:
            answers = self.sum(answers)
        return x + answers
