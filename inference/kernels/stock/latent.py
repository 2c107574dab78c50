"""Attention over a latent cache (DeepSeek-V2, 2024)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from inference.kernels.shapes import LatentShape, Part
from inference.kernels.stock.layers import AdaptedLinear, LinearResidual, Parts, RMSNorm, optional
from inference.kernels.weight import Weight


class PerHead(nn.Cell):
    """x [T, H, in] -> [T, H, out]: multiply each head by its own matrix, weight [H * room, in]."""

    def __init__(self, heads: int, size: int, weight: Weight):
        super().__init__()
        self.linear = Parts(heads, size, weight)

    def construct(self, x: Tensor, geometry: tuple) -> Tensor:
        return ops.transpose(self.linear(ops.transpose(x, (1, 0, 2)), geometry), (1, 0, 2))


class LatentAttentionSublayer(nn.Cell):
    """x + output(latent attention): project queries to the latent space and project the results back.

    The cache is [slots, rank + rope]: a position's normalized latent and its rotated key.
    """

    def __init__(
        self,
        shape: LatentShape,
        rotation: np.ndarray,
        mask_index: int,
        rotation_index: int,
        weights: Mapping[str, Weight],
        caches: tuple[Parameter],
        part: Part | None = None,
    ):
        super().__init__()
        self.shape, self.mask_index, self.rotation_index = shape, mask_index, rotation_index
        (self.cache,) = caches
        self.norm = RMSNorm(weights["norm"].data, shape.eps)
        self.down = AdaptedLinear(weights["down"], optional(weights, "down_bias"))
        self.first = shape.query_rank or shape.heads * (shape.nope + shape.rope)
        if shape.query_rank:
            self.query_norm = RMSNorm(weights["query_norm"].data, shape.latent_eps)
            self.query_up = AdaptedLinear(weights["query_up"])
        self.latent_norm = RMSNorm(weights["latent_norm"].data, shape.latent_eps)
        self.key_up = PerHead(shape.heads, shape.rank, weights["key_up"])
        self.value_up = PerHead(shape.heads, shape.value, weights["value_up"])
        self.output = LinearResidual(weights["output"], optional(weights, "output_bias"), part=part)
        half = shape.rope // 2
        self.swap_halves = Tensor(np.r_[half : shape.rope, 0:half].astype(np.int32))
        self.gather, self.scatter = ops.Gather(), ops.ScatterUpdate()
        self.scores, self.weighted_sum = ops.BatchMatMul(transpose_b=True), ops.BatchMatMul()
        self.softmax = ops.Softmax(-1)

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return x * cos + self.gather(x, self.swap_halves, 2) * sin

    def construct(self, x: Tensor, geometry: tuple) -> Tensor:
        turns, write_slots, context_slots, masks, query_index, token_index = geometry[:6]
        cos, sin = turns[self.rotation_index]
        shape, heads, first = self.shape, self.shape.heads, self.first
        down = self.down(self.norm(x), geometry)
        latent = self.latent_norm(down[:, first : first + shape.rank])
        key = self.rotate(ops.expand_dims(down[:, first + shape.rank :], 1), cos, sin)
        entry = ops.concat((latent, key.reshape(-1, shape.rope)), 1)
        self.scatter(self.cache, write_slots, ops.expand_dims(entry, 0))
        query = down[:, :first]
        if shape.query_rank:
            query = self.query_up(self.query_norm(query), geometry)
        query = query.reshape(-1, heads, shape.nope + shape.rope)
        turned = self.rotate(query[:, :, shape.nope :], cos, sin)
        query = ops.concat((self.key_up(query[:, :, : shape.nope], geometry), turned), 2)
        query = query * shape.scale  # [T, H, rank + rope]
        rows, longest = query_index.shape
        context = self.gather(self.cache, context_slots, 0).reshape(rows, -1, shape.width)  # [B, L, rank + rope]
        query = ops.transpose(self.gather(query, query_index, 0), (0, 2, 1, 3))  # [B, H, Q, rank + rope]
        scores = self.scores(query.reshape(rows, -1, shape.width), context).reshape(rows, heads, longest, -1)
        weights = self.softmax(scores + masks[self.mask_index]).reshape(rows, heads * longest, -1)
        mixed = self.weighted_sum(weights, context[:, :, : shape.rank]).reshape(rows, heads, longest, shape.rank)
        mixed = ops.transpose(mixed, (0, 2, 1, 3)).reshape(-1, heads, shape.rank)
        values = self.value_up(self.gather(mixed, token_index, 0), geometry)
        return self.output(values.reshape(-1, heads * shape.value), x, geometry)
