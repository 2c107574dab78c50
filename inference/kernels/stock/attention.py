"""Causal attention with rotary embedding over a paged cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from inference.kernels.shapes import AttentionShape, LatentShape, Part, windows_of
from inference.kernels.stock.geometry import CacheGeometry
from inference.kernels.stock.layers import (
    AdaptedLinear,
    LinearResidual,
    RMSNorm,
    Softcap,
    norm_of,
    optional,
    post_norm_of,
)
from inference.kernels.weight import Weight


class StepGeometry(CacheGeometry):
    """The geometry that all layers of a step share: rotation angles, cache slots, attention masks."""

    def __init__(self, rotations: Sequence[np.ndarray], shapes: Sequence[AttentionShape | LatentShape]):
        super().__init__(shapes[0])
        # For each rotation, for both halves of a head: angle per position, and magnitudes of cosine and sine.
        self.rotations = tuple(
            (
                Tensor(np.tile(frequencies, 2).reshape(1, 1, -1)),
                Tensor(np.tile(magnitudes, 2).reshape(1, 1, -1)),
                Tensor(np.concatenate([-magnitudes, magnitudes]).reshape(1, 1, -1)),
            )
            for frequencies, magnitudes in rotations
        )
        self.has_distances = any(shape.slopes is not None for shape in shapes)
        # Graph mode unrolls over this tuple; window 0 means that a layer sees its whole context.
        self.windows = windows_of(shapes)

    def construct(
        self,
        positions: Tensor,
        slots: Tensor,
        block_tables: Tensor,
        query_starts: Tensor,
        query_index: Tensor,
        token_index: Tensor,
    ) -> tuple:
        """positions, slots [T]; block_tables [B, blocks]; query_starts [B + 1], the index of each sequence's first
        token.

        query_index [B, Q] gathers each sequence's tokens from the flat batch; token_index [T] inverts it. Both are
        returned after cos and sin [T, 1, D] of each rotation; write_slots [K, T]; context_slots [K, B, L]; and masks
        [B, 1, Q, L], one per window. Distances [B, 1, Q, L] come last, if a layer needs them.
        """
        turns: tuple = ()
        for frequencies, cos_magnitudes, sin_magnitudes in self.rotations:
            angles = positions.astype(ms.float32).reshape(-1, 1, 1) * frequencies
            turns = turns + ((ops.cos(angles) * cos_magnitudes, ops.sin(angles) * sin_magnitudes),)
        write_slots = self.head_offsets + slots.reshape(1, -1)
        context_slots, key_positions = self.slots_of(block_tables, self.gather(positions, query_starts[1:] - 1, 0))
        query_positions = ops.expand_dims(self.gather(positions, query_index, 0), 2)  # [B, Q, 1]
        masks: tuple = ()
        for window in self.windows:
            visible = key_positions <= query_positions
            if window > 0:
                visible = ops.logical_and(visible, key_positions > query_positions - window)
            masks = masks + (self.mask(visible),)
        distances: tuple = ()
        if self.has_distances:
            distances = (ops.expand_dims((key_positions - query_positions).astype(ms.float32), 1),)
        return turns, write_slots, context_slots, masks, query_index, token_index, distances


class Attention(nn.Cell):
    """Rotary embedding, cache write and causal attention over a paged cache.

    qkv [T, (H + 2K) * D] -> [T, H * D]. Writes this step's keys and values into the cache before it reads them, so
    that prefill, chunked prefill and decode are the same call.
    """

    def __init__(
        self,
        shape: AttentionShape,
        caches: tuple[Parameter, Parameter],
        mask_index: int,
        rotation_index: int,
        query_norm: RMSNorm | None = None,
        key_norm: RMSNorm | None = None,
    ):
        super().__init__()
        head_dim = shape.head_dim
        self.heads, self.kv_heads, self.head_dim = shape.heads, shape.kv_heads, head_dim
        self.groups = shape.heads // shape.kv_heads
        self.key_cache, self.value_cache = caches
        self.mask_index, self.rotation_index = mask_index, rotation_index
        self.has_norm = query_norm is not None
        self.norms_all_heads, self.norms_rotated = shape.norms_all_heads, shape.norms_rotated
        if query_norm is not None and key_norm is not None:
            self.query_norm, self.key_norm = query_norm, key_norm
        self.scale = shape.scale
        self.has_softcap = shape.softcap is not None
        if shape.softcap is not None:
            self.softcap = Softcap(shape.softcap)
        self.has_slopes = shape.slopes is not None
        if shape.slopes is not None:
            self.slopes = Tensor(np.array(shape.slopes, np.float32).reshape(shape.kv_heads, 1, self.groups, 1, 1))
        half = head_dim // 2
        self.swap_halves = Tensor(np.r_[half:head_dim, 0:half].astype(np.int32))
        self.gather = ops.Gather()
        self.scatter = ops.ScatterUpdate()
        self.scores = ops.BatchMatMul(transpose_b=True)
        self.weighted_sum = ops.BatchMatMul()
        self.softmax = ops.Softmax(-1)

    def construct(self, qkv: Tensor, geometry: tuple) -> Tensor:
        """`geometry` is the output of `StepGeometry`."""
        turns, write_slots, context_slots, masks, query_index, token_index, distances = geometry[:7]
        cos, sin = turns[self.rotation_index]
        heads, kv_heads, dim = self.heads, self.kv_heads, self.head_dim
        qkv = qkv.reshape(-1, heads + 2 * kv_heads, dim)
        rotated, value = qkv[:, : heads + kv_heads], qkv[:, heads + kv_heads :]
        if self.has_norm and not self.norms_rotated:
            rotated = self.normed(rotated)
        # Swapping the halves turns rotate_half(x) * sin into a gather; `sin` already contains the sign.
        rotated = rotated * cos + self.gather(rotated, self.swap_halves, 2) * sin
        if self.has_norm and self.norms_rotated:
            rotated = self.normed(rotated)
        self.scatter(self.key_cache, write_slots, ops.transpose(rotated[:, heads:], (1, 0, 2)))
        self.scatter(self.value_cache, write_slots, ops.transpose(value, (1, 0, 2)))
        keys = self.gather(self.key_cache, context_slots, 0)  # [K, B, L, D]
        values = self.gather(self.value_cache, context_slots, 0)
        rows, longest = query_index.shape
        query = self.gather(rotated[:, :heads], query_index, 0) * self.scale  # [B, Q, H, D]
        query = query.reshape(rows, longest, kv_heads, self.groups, dim)
        query = ops.transpose(query, (2, 0, 3, 1, 4)).reshape(kv_heads, rows, -1, dim)  # [K, B, G * Q, D]
        scores = self.scores(query, keys).reshape(kv_heads, rows, self.groups, longest, -1)
        if self.has_softcap:
            scores = self.softcap(scores)
        if self.has_slopes:
            scores = scores + self.slopes * distances[0]
        weights = self.softmax(scores + masks[self.mask_index])
        weights = weights.reshape(kv_heads, rows, self.groups * longest, -1)
        mixed = self.weighted_sum(weights, values).reshape(kv_heads, rows, self.groups, longest, dim)
        mixed = ops.transpose(mixed, (1, 3, 0, 2, 4)).reshape(-1, heads * dim)
        return self.gather(mixed, token_index, 0)

    def normed(self, heads: Tensor) -> Tensor:
        """Normalize queries and keys [T, H + K, D]: each head separately, or all heads of a token together."""
        query, key = heads[:, : self.heads], heads[:, self.heads :]
        if self.norms_all_heads:
            query, key = query.reshape(-1, self.heads * self.head_dim), key.reshape(-1, self.kv_heads * self.head_dim)
        query, key = self.query_norm(query), self.key_norm(key)
        if self.norms_all_heads:
            query = query.reshape(-1, self.heads, self.head_dim)
            key = key.reshape(-1, self.kv_heads, self.head_dim)
        return ops.concat((query, key), 1)


class AttentionSublayer(nn.Cell):
    """x + output(attention(qkv(norm(x)))); with a post-norm, x + post_norm(output(...))."""

    def __init__(
        self,
        shape: AttentionShape,
        rotation: np.ndarray,
        mask_index: int,
        rotation_index: int,
        weights: Mapping[str, Weight],
        caches: tuple[Parameter, Parameter],
        part: Part | None = None,
    ):
        super().__init__()
        self.norm = norm_of(weights, shape.eps)
        self.qkv = AdaptedLinear(weights["qkv"], optional(weights, "qkv_bias"))
        norms = (optional(weights, "query_norm"), optional(weights, "key_norm"))
        query_norm, key_norm = (None if norm is None else RMSNorm(norm, shape.eps) for norm in norms)
        self.attention = Attention(shape, caches, mask_index, rotation_index, query_norm, key_norm)
        bias, post_norm = optional(weights, "output_bias"), post_norm_of(weights, shape.eps)
        self.output = LinearResidual(weights["output"], bias, post_norm, part)

    def construct(self, x: Tensor, geometry: tuple) -> Tensor:
        return self.add(self.norm(x), x, geometry)

    def add(self, normed: Tensor, x: Tensor, geometry: tuple) -> Tensor:
        """Return x + the attention of an input that is already normalized."""
        return self.output(self.attention(self.qkv(normed, geometry), geometry), x, geometry)


def cache_shapes(shape: AttentionShape | LatentShape) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of a layer's key and value cache, or of its latent cache."""
    if isinstance(shape, LatentShape):
        return ((shape.slots, shape.width),)
    both = (shape.kv_heads * shape.slots, shape.head_dim)
    return both, both
