"""Attention with a distance bias, for an encoder and its decoder (T5)."""

from __future__ import annotations

from collections.abc import Mapping

from mindspore import Parameter, Tensor, nn, ops

from inference.kernels.shapes import AttentionShape, Part
from inference.kernels.stock.geometry import CacheGeometry
from inference.kernels.stock.layers import AdaptedLinear, LinearResidual, RMSNorm, optional
from inference.kernels.weight import Weight


class _RelativeGeometry(CacheGeometry):
    """Geometry shared by an encoder and its decoder."""

    def __init__(self, shape: AttentionShape):
        super().__init__(shape)
        self.reach = shape.reach

    def distances(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        """Return the index [B, Q, L] into a head's bias for the distance from each query to each key."""
        return ops.clamp(key_positions - query_positions, -self.reach, self.reach) + self.reach


class SourceGeometry(_RelativeGeometry):
    """The geometry that all encoder layers share in a step, in which every sequence is complete and starts at 0."""

    def construct(
        self,
        positions: Tensor,
        slots: Tensor,
        block_tables: Tensor,
        query_starts: Tensor,
        query_index: Tensor,
        token_index: Tensor,
    ) -> tuple:
        """Take the inputs of `StepGeometry`.

        Returns write_slots [K, T]; context_slots [K, B, L]; mask [B, 1, 1, L]; distances [B, Q, L]; query_index [B, Q];
        token_index [T]; and, since a source has no cross_slots and cross_mask, repeats the first two in their place.
        """
        write_slots = self.head_offsets + slots.reshape(1, -1)
        lengths = query_starts[1:] - query_starts[:-1]
        context_slots, key_positions = self.slots_of(block_tables, lengths - 1)
        mask = self.mask(key_positions < lengths.reshape(-1, 1, 1))
        query_positions = ops.expand_dims(self.gather(positions, query_index, 0), 2)
        distances = self.distances(query_positions, key_positions)
        return write_slots, context_slots, mask, distances, query_index, token_index, context_slots, mask


class TargetGeometry(_RelativeGeometry):
    """The geometry that all layers of a decoder with cross-attention share in a step."""

    def construct(
        self,
        positions: Tensor,
        slots: Tensor,
        block_tables: Tensor,
        query_starts: Tensor,
        query_index: Tensor,
        token_index: Tensor,
        cross_tables: Tensor,
        cross_lengths: Tensor,
    ) -> tuple:
        """As SourceGeometry, but with a causal mask [B, 1, Q, L], cross_slots [K, B, S] and cross_mask [B, 1, 1, S]."""
        write_slots = self.head_offsets + slots.reshape(1, -1)
        last = self.gather(positions, query_starts[1:] - 1, 0)
        context_slots, key_positions = self.slots_of(block_tables, last)
        cross_slots, source_positions = self.slots_of(cross_tables, cross_lengths - 1)
        query_positions = ops.expand_dims(self.gather(positions, query_index, 0), 2)
        mask = self.mask(key_positions <= query_positions)
        cross_mask = self.mask(source_positions < cross_lengths.reshape(-1, 1, 1))
        distances = self.distances(query_positions, key_positions)
        return write_slots, context_slots, mask, distances, query_index, token_index, cross_slots, cross_mask


class RelativeAttention(nn.Cell):
    """Attention over a paged cache with a distance bias instead of rotation; one key/value head per query head.

    projected [T, (H + 2H) * D] -> [T, H * D]; for `cross`, projected [T, H * D], and nothing is written to the cache.
    """

    def __init__(self, shape: AttentionShape, caches: tuple[Parameter, Parameter], distances: Parameter | None = None):
        super().__init__()
        self.heads, self.head_dim, self.scale = shape.heads, shape.head_dim, shape.scale
        self.key_cache, self.value_cache = caches
        self.is_cross = shape.scope == "cross"
        self.has_distances = distances is not None
        if distances is not None:
            self.distances = distances
            self.reach = shape.reach
        self.gather = ops.Gather()
        self.scatter = ops.ScatterUpdate()
        self.scores = ops.BatchMatMul(transpose_b=True)
        self.weighted_sum = ops.BatchMatMul()
        self.softmax = ops.Softmax(-1)

    def construct(self, projected: Tensor, geometry: tuple) -> Tensor:
        """`geometry` is the output of `SourceGeometry` or `TargetGeometry`."""
        write_slots, context_slots, mask, distances, query_index, token_index, cross_slots, cross_mask = geometry[:8]
        heads, dim = self.heads, self.head_dim
        projected = projected.reshape(-1, projected.shape[1] // dim, dim)
        if self.is_cross:
            context_slots, mask = cross_slots, cross_mask
        else:
            kept = ops.transpose(projected[:, heads:], (1, 0, 2))  # [2H, T, D]
            self.scatter(self.key_cache, write_slots, kept[:heads])
            self.scatter(self.value_cache, write_slots, kept[heads:])
        keys = self.gather(self.key_cache, context_slots, 0)  # [H, B, L, D]
        values = self.gather(self.value_cache, context_slots, 0)
        query = self.gather(projected[:, :heads], query_index, 0) * self.scale  # [B, Q, H, D]
        scores = self.scores(ops.transpose(query, (2, 0, 1, 3)), keys)  # [H, B, Q, L]
        if self.has_distances:
            table = self.distances.reshape(heads, 2 * self.reach + 1)
            scores = scores + self.gather(table, distances, 1)
        weights = self.softmax(scores + ops.transpose(mask, (1, 0, 2, 3)))
        mixed = ops.transpose(self.weighted_sum(weights, values), (1, 2, 0, 3)).reshape(-1, heads * dim)
        return self.gather(mixed, token_index, 0)


class RelativeAttentionSublayer(nn.Cell):
    """x + output(attention(qkv(norm(x)))), in the scope of its shape."""

    def __init__(
        self,
        shape: AttentionShape,
        weights: Mapping[str, Weight],
        caches: tuple[Parameter, Parameter],
        part: Part | None = None,
    ):
        super().__init__()
        self.norm = RMSNorm(weights["norm"].data, shape.eps)
        self.qkv = AdaptedLinear(weights["qkv"])
        self.stores = shape.scope == "store"
        if self.stores:
            self.heads, self.head_dim = shape.kv_heads, shape.head_dim
            self.key_cache, self.value_cache = caches
            self.scatter = ops.ScatterUpdate()
        else:
            self.attention = RelativeAttention(shape, caches, optional(weights, "distances"))
            self.output = LinearResidual(weights["output"], part=part)

    def construct(self, x: Tensor, geometry: tuple) -> Tensor:
        projected = self.qkv(self.norm(x), geometry)
        if self.stores:
            kept = ops.transpose(projected.reshape(-1, 2 * self.heads, self.head_dim), (1, 0, 2))
            self.scatter(self.key_cache, geometry[0], kept[: self.heads])
            self.scatter(self.value_cache, geometry[0], kept[self.heads :])
            return x
        return self.output(self.attention(projected, geometry), x, geometry)
