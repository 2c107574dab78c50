"""The decoder's operations in MindSpore's stock operators: every device has them, and they define what is right.

Knows shapes and arithmetic; knows nothing about checkpoints, requests or text. T is the number of tokens in a step, B
of sequences, Q the longest query, L the longest context (padded to whole blocks); H and K are query and key/value
heads, G = H / K, D the head dimension.

MindSpore charges some 25 microseconds for every operator of a graph with dynamic shapes, so the code below is written
for few operators: rotation is a gather and two products, masks and slots are made once a step and not once a layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from numpy.typing import DTypeLike

from inference.kernels.formats import whole_panels
from inference.kernels.shapes import (
    AttentionShape,
    ExpertsShape,
    FeedForwardShape,
    LatentShape,
    Part,
    Routing,
    windows_of,
)
from inference.kernels.weight import Weight

# Whether weights and cache can be kept narrower than float32.
NARROW = False
# Added to the score of a position that must not be seen. Finite, so that a row of nothing else is no NaN.
MASKED = -1e30


def empty(name: str, shape: tuple[int, ...], dtype: DTypeLike) -> Parameter:
    """A parameter with undefined contents."""
    return _parameter(name, np.empty(shape, dtype))


def zeros(name: str, shape: tuple[int, ...], dtype: DTypeLike) -> Parameter:
    """A parameter of zeros, of whose memory no more is taken than is used."""
    return _parameter(name, np.zeros(shape, dtype))


def _parameter(name: str, values: np.ndarray) -> Parameter:
    parameter = Parameter(Tensor.from_numpy(np.zeros(1, values.dtype)), name=name, requires_grad=False)
    # `Parameter` copies what it is made from, which would touch all of it; this takes numpy's own memory over.
    parameter.assign_value(Tensor.from_numpy(values))
    return parameter


def memory(data: Parameter) -> np.ndarray:
    """A parameter's memory, to be written to: on a CPU `asnumpy` is a view, so weights are copied only once."""
    return data.asnumpy()


class RMSNorm(nn.Cell):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis (Zhang & Sennrich 2019, eq. 4)."""

    def __init__(self, weight: Parameter, eps: float):
        super().__init__()
        self.weight = weight
        self.eps = eps
        self.square = ops.Square()
        self.mean = ops.ReduceMean(keep_dims=True)
        self.rsqrt = ops.Rsqrt()

    def construct(self, x: Tensor) -> Tensor:
        return x * self.rsqrt(self.mean(self.square(x), -1) + self.eps) * self.weight


class LayerNorm(nn.Cell):
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis (Ba et al. 2016)."""

    def __init__(self, weight: Parameter, bias: Parameter, eps: float):
        super().__init__()
        self.weight, self.bias = weight, bias
        self.eps = eps
        self.square = ops.Square()
        self.mean = ops.ReduceMean(keep_dims=True)
        self.rsqrt = ops.Rsqrt()

    def construct(self, x: Tensor) -> Tensor:
        x = x - self.mean(x, -1)
        return x * self.rsqrt(self.mean(self.square(x), -1) + self.eps) * self.weight + self.bias


class Linear(nn.Cell):
    """x [T, in] -> [T, out], weight [out, in], with an optional bias [out]."""

    def __init__(self, weight: Parameter, bias: Parameter | None = None):
        super().__init__()
        self.weight = weight
        self.has_bias = bias is not None
        if bias is not None:
            self.bias = bias
        self.matmul = ops.MatMul(transpose_b=True)

    def construct(self, x: Tensor) -> Tensor:
        y = self.matmul(x, self.weight)
        if self.has_bias:
            y = y + self.bias
        return y


class LowRankSum(nn.Cell):
    """x [T, in] -> what each token's adapter adds to a product, [T, out].

    All adapters' down matrices are one product, of which each token keeps what is its adapter's.
    """

    def __init__(self, weight: Weight):
        super().__init__()
        ranks = [len(addition.down) for addition in weight.additions]
        owners = np.repeat([addition.adapter for addition in weight.additions], ranks)
        up = np.zeros((weight.data.shape[0], sum(ranks)), np.float32)
        for addition, end in zip(weight.additions, np.cumsum(ranks), strict=True):
            rows, rank = addition.up.shape
            up[addition.first_row : addition.first_row + rows, end - rank : end] = addition.up
        self.down = Tensor(np.concatenate([addition.down for addition in weight.additions]))
        self.up, self.owners = Tensor(up), Tensor(owners.astype(np.int32).reshape(1, -1))
        self.matmul = ops.MatMul(transpose_b=True)

    def construct(self, x: Tensor, adapters: Tensor) -> Tensor:
        """adapters [T]: each token's, from 1; 0 for none."""
        is_own = (ops.expand_dims(adapters, 1) == self.owners).astype(ms.float32)
        return self.matmul(self.matmul(x, self.down) * is_own, self.up)


class LowRankSums(nn.Cell):
    """The same for parts of a matrix with an input each: x [parts, T, in] -> [parts, T, size].

    Args:
        weight: [parts * room, in].
        size: rows of a part that are used.
    """

    def __init__(self, weight: Weight, parts: int, size: int):
        super().__init__()
        room, columns = weight.data.shape[0] // parts, weight.data.shape[1]
        numbers = sorted({addition.adapter for addition in weight.additions})
        owners, down, up = [], [], []
        for number in numbers:
            own: list[list] = [[] for _ in range(parts)]
            for addition in weight.additions:
                if addition.adapter == number:
                    own[addition.first_row // room].append(addition)
            rank = max(sum(len(addition.down) for addition in part) for part in own)
            owners += [number] * rank
            down.append(np.zeros((parts, rank, columns), np.float32))
            up.append(np.zeros((parts, size, rank), np.float32))
            for index, part in enumerate(own):
                end = 0
                for addition in part:
                    begin, end, row = end, end + len(addition.down), addition.first_row % room
                    down[-1][index, begin:end] = addition.down
                    up[-1][index, row : row + len(addition.up), begin:end] = addition.up
        self.down, self.up = Tensor(np.concatenate(down, 1)), Tensor(np.concatenate(up, 2))
        self.owners = Tensor(np.array(owners, np.int32).reshape(1, 1, -1))
        self.matmul = ops.BatchMatMul(transpose_b=True)

    def construct(self, x: Tensor, adapters: Tensor) -> Tensor:
        """adapters [T]: each token's, from 1; 0 for none."""
        is_own = (adapters.reshape(1, -1, 1) == self.owners).astype(ms.float32)
        return self.matmul(self.matmul(x, self.down) * is_own, self.up)


class AdaptedLinear(nn.Cell):
    """`Linear` with what adapters add to it, where there are any."""

    def __init__(self, weight: Weight, bias: Parameter | None = None):
        super().__init__()
        self.linear = Linear(weight.data, bias)
        self.is_adapted = bool(weight.additions)
        if self.is_adapted:
            self.low_rank = LowRankSum(weight)

    def construct(self, x: Tensor, geometry: tuple) -> Tensor:
        y = self.linear(x)
        if self.is_adapted:
            y = y + self.low_rank(x, geometry[-1])
        return y


class LinearResidual(nn.Cell):
    """residual + linear(x), or residual + norm(linear(x)); of x each rank of a group has some columns."""

    def __init__(
        self, weight: Weight, bias: Parameter | None = None, norm: RMSNorm | None = None, part: Part | None = None
    ):
        super().__init__()
        self.linear = AdaptedLinear(weight, bias)
        self.has_norm = norm is not None
        if norm is not None:
            self.norm = norm
        self.is_shared = part is not None
        if part is not None:
            self.sum = ops.AllReduce(group=part.group)

    def construct(self, x: Tensor, residual: Tensor, geometry: tuple) -> Tensor:
        y = self.linear(x, geometry)
        if self.is_shared:
            y = self.sum(y)
        if self.has_norm:
            y = self.norm(y)
        return residual + y


class Activate(nn.Cell):
    """gate_up [T, 2F] -> activation(gate) * up [T, F] (Shazeer 2020); without a gate up [T, F] -> activation(up)."""

    def __init__(self, shape: FeedForwardShape):
        super().__init__()
        self.width, self.gated = shape.width, shape.gated
        self.function = {
            "silu": nn.SiLU(),
            "gelu_tanh": nn.GELU(approximate=True),
            "gelu": nn.GELU(approximate=False),
            "relu": nn.ReLU(),
        }[shape.activation]

    def construct(self, gate_up: Tensor) -> Tensor:
        if self.gated:
            return self.function(gate_up[:, : self.width]) * gate_up[:, self.width :]
        return self.function(gate_up)


class Softcap(nn.Cell):
    """limit * tanh(x / limit)."""

    def __init__(self, limit: float):
        super().__init__()
        self.limit = limit
        self.tanh = ops.Tanh()

    def construct(self, x: Tensor) -> Tensor:
        return self.tanh(x / self.limit) * self.limit


class Embedding(nn.Cell):
    """tokens [T] -> rows of the weight [T, hidden], of which each rank of a group has some."""

    def __init__(self, weight: Weight, vocabulary: int, hidden: int, part: Part | None = None):
        super().__init__()
        self.weight = weight.data
        self.gather = ops.Gather()
        self.is_shared = part is not None
        if part is not None:
            self.first, self.last = part.first_token, part.first_token + vocabulary
            self.sum = ops.AllReduce(group=part.group)

    def construct(self, tokens: Tensor) -> Tensor:
        if not self.is_shared:
            return self.gather(self.weight, tokens, 0)
        is_own = ops.logical_and(tokens >= self.first, tokens < self.last)
        rows = self.gather(self.weight, (tokens - self.first) * is_own.astype(ms.int32), 0)
        return self.sum(rows * ops.expand_dims(is_own.astype(ms.float32), 1))


def within(context: Tensor, key_positions: Tensor, last: Tensor) -> Tensor:
    """Slots of contexts [1, B, L], where those after each sequence's last position [B] become its first one.

    They are masked, but what an earlier sequence left there may be no numbers, which a weight of 0 does not undo.
    """
    first = ops.broadcast_to(context[:, :, :1], context.shape)
    return ops.select(key_positions <= last.reshape(1, -1, 1), context, first)


class StepGeometry(nn.Cell):
    """What all layers of a step share: rotation angles, cache slots, attention masks.

    The cache of a layer is [K * slots, D]: head-major, so that a gather of a sequence's slots gives [K, B, L, D],
    which is what the batched products want, without a transposition of the context.
    """

    def __init__(self, rotations: Sequence[np.ndarray], shapes: Sequence[AttentionShape | LatentShape]):
        super().__init__()
        shape = shapes[0]
        # Of each rotation, for both halves of a head: angle per position, and magnitude of cosine and of sine.
        self.rotations = tuple(
            (
                Tensor(np.tile(frequencies, 2).reshape(1, 1, -1)),
                Tensor(np.tile(magnitudes, 2).reshape(1, 1, -1)),
                Tensor(np.concatenate([-magnitudes, magnitudes]).reshape(1, 1, -1)),
            )
            for frequencies, magnitudes in rotations
        )
        self.has_distances = any(shape.slopes is not None for shape in shapes)
        self.head_offsets = Tensor((np.arange(shape.kv_heads) * shape.slots).astype(np.int32).reshape(-1, 1))
        self.block_size = shape.block_size
        self.block_offsets = Tensor(np.arange(shape.block_size, dtype=np.int32))
        self.gather = ops.Gather()
        # Graph mode unrolls over this tuple; window 0 is a layer that sees its whole context.
        self.windows = windows_of(shapes)
        self.seen = Tensor(0.0, ms.float32)
        self.masked = Tensor(MASKED, ms.float32)

    def construct(
        self,
        positions: Tensor,
        slots: Tensor,
        block_tables: Tensor,
        query_starts: Tensor,
        query_index: Tensor,
        token_index: Tensor,
    ) -> tuple:
        """positions, slots [T]; block_tables [B, blocks]; query_starts [B + 1], of each sequence's tokens.

        query_index [B, Q] picks each sequence's tokens from the flat batch; token_index [T] undoes it. Both are
        returned after cos and sin [T, 1, D] of each rotation; write_slots [K, T]; context_slots [K, B, L]; masks
        [B, 1, Q, L], one for each window; and last the distances [B, 1, Q, L], where a layer needs them.
        """
        turns: tuple = ()
        for frequencies, cos_magnitudes, sin_magnitudes in self.rotations:
            angles = positions.astype(ms.float32).reshape(-1, 1, 1) * frequencies
            turns = turns + ((ops.cos(angles) * cos_magnitudes, ops.sin(angles) * sin_magnitudes),)
        write_slots = self.head_offsets + slots.reshape(1, -1)
        rows, blocks = block_tables.shape
        context = block_tables.reshape(rows, blocks, 1) * self.block_size + self.block_offsets
        context = context.reshape(1, rows, -1)  # [1, B, L]
        key_positions = ops.arange(0, context.shape[2]).astype(ms.int32).reshape(1, 1, -1)
        last = self.gather(positions, query_starts[1:] - 1, 0)
        context_slots = ops.expand_dims(self.head_offsets, 2) + within(context, key_positions, last)
        query_positions = ops.expand_dims(self.gather(positions, query_index, 0), 2)  # [B, Q, 1]
        masks: tuple = ()
        for window in self.windows:
            visible = key_positions <= query_positions
            if window > 0:
                visible = ops.logical_and(visible, key_positions > query_positions - window)
            masks = masks + (ops.expand_dims(ops.select(visible, self.seen, self.masked), 1),)
        distances: tuple = ()
        if self.has_distances:
            distances = (ops.expand_dims((key_positions - query_positions).astype(ms.float32), 1),)
        return turns, write_slots, context_slots, masks, query_index, token_index, distances


class Attention(nn.Cell):
    """Rotary embedding, cache write and causal attention over a paged cache.

    qkv [T, (H + 2K) * D] -> [T, H * D]. Writes this step's keys and values into the cache before it reads them, so
    prefill, chunked prefill and decode are the same call.
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
        """`geometry` is what `StepGeometry` returns."""
        turns, write_slots, context_slots, masks, query_index, token_index, distances = geometry[:7]
        cos, sin = turns[self.rotation_index]
        heads, kv_heads, dim = self.heads, self.kv_heads, self.head_dim
        qkv = qkv.reshape(-1, heads + 2 * kv_heads, dim)
        rotated, value = qkv[:, : heads + kv_heads], qkv[:, heads + kv_heads :]
        if self.has_norm:
            rotated = ops.concat((self.query_norm(rotated[:, :heads]), self.key_norm(rotated[:, heads:])), 1)
        # Swapping the halves turns rotate_half(x) * sin into a gather; the sign is already in `sin`.
        rotated = rotated * cos + self.gather(rotated, self.swap_halves, 2) * sin
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


class AttentionHalf(nn.Cell):
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
        self.norm = _norm(weights, shape.eps)
        self.qkv = AdaptedLinear(weights["qkv"], _optional(weights, "qkv_bias"))
        norms = (_optional(weights, "query_norm"), _optional(weights, "key_norm"))
        query_norm, key_norm = (None if norm is None else RMSNorm(norm, shape.eps) for norm in norms)
        self.attention = Attention(shape, caches, mask_index, rotation_index, query_norm, key_norm)
        bias, post_norm = _optional(weights, "output_bias"), _post_norm(weights, shape.eps)
        self.output = LinearResidual(weights["output"], bias, post_norm, part)

    def construct(self, x: Tensor, geometry: tuple) -> Tensor:
        return self.output(self.attention(self.qkv(self.norm(x), geometry), geometry), x, geometry)


class Parts(nn.Cell):
    """x [parts, T, in] -> [parts, T, size]: each by its part of weight [parts * room, in], with what adapters add."""

    def __init__(self, parts: int, size: int, weight: Weight):
        super().__init__()
        self.weight = weight.data
        self.parts, self.size, self.room = parts, size, whole_panels(size)
        self.matmul = ops.BatchMatMul(transpose_b=True)
        self.is_adapted = bool(weight.additions)
        if self.is_adapted:
            self.low_rank = LowRankSums(weight, parts, size)

    def construct(self, x: Tensor, geometry: tuple) -> Tensor:
        y = self.matmul(x, self.weight.reshape(self.parts, self.room, -1))[:, :, : self.size]
        if self.is_adapted:
            y = y + self.low_rank(x, geometry[-1])
        return y


class PerHead(nn.Cell):
    """x [T, H, in] -> [T, H, out]: each head by a matrix of its own, weight [H * room, in]."""

    def __init__(self, heads: int, size: int, weight: Weight):
        super().__init__()
        self.linear = Parts(heads, size, weight)

    def construct(self, x: Tensor, geometry: tuple) -> Tensor:
        return ops.transpose(self.linear(ops.transpose(x, (1, 0, 2)), geometry), (1, 0, 2))


class LatentAttentionHalf(nn.Cell):
    """x + output(attention on latents): queries are brought to the latents' space and answers back from there.

    The cache is [slots, rank + rope]: a position's latent, normed, and its rotated key.
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
        self.down = AdaptedLinear(weights["down"], _optional(weights, "down_bias"))
        self.first = shape.query_rank or shape.heads * (shape.nope + shape.rope)
        if shape.query_rank:
            self.query_norm = RMSNorm(weights["query_norm"].data, shape.latent_eps)
            self.query_up = AdaptedLinear(weights["query_up"])
        self.latent_norm = RMSNorm(weights["latent_norm"].data, shape.latent_eps)
        self.key_up = PerHead(shape.heads, shape.rank, weights["key_up"])
        self.value_up = PerHead(shape.heads, shape.value, weights["value_up"])
        self.output = LinearResidual(weights["output"], _optional(weights, "output_bias"), part=part)
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


class FeedForwardHalf(nn.Cell):
    """x + down(activation(gate(norm(x))) * up(norm(x))); with a post-norm, x + post_norm(down(...))."""

    def __init__(self, shape: FeedForwardShape, weights: Mapping[str, Weight], part: Part | None = None):
        super().__init__()
        self.norm = _norm(weights, shape.eps)
        self.gate_up = AdaptedLinear(weights["gate_up"], _optional(weights, "gate_up_bias"))
        self.activation = Activate(shape)
        bias, post_norm = _optional(weights, "down_bias"), _post_norm(weights, shape.eps)
        self.down = LinearResidual(weights["down"], bias, post_norm, part)

    def construct(self, x: Tensor, geometry: tuple) -> Tensor:
        return self.down(self.activation(self.gate_up(self.norm(x), geometry)), x, geometry)


class Router(nn.Cell):
    """x [T, hidden] -> the weight of every expert [T, experts], 0 for those that are not chosen.

    The choice is made with masks instead of indices, so that shapes do not depend on values.
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
        """1 for the `count` largest of each row of [T, total], 0 for the others."""
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
        if routing.normalise:
            weights = weights / (self.sum(weights, 1).reshape(-1, 1) + 1e-20)
        return weights * routing.scale


class GatedExperts(nn.Cell):
    """x [T, hidden], weights [T, experts] -> the weighted sum of the experts' answers [T, hidden].

    Computes every expert for every token, because stock operators on a CPU have no product of ragged groups.

    Args:
        gate_up: [experts * 2 * room, hidden], the gate of an expert above its up, each with room for whole panels.
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


class ExpertsHalf(nn.Cell):
    """x + the experts' answers to norm(x), and that of the shared expert where there is one."""

    def __init__(self, shape: ExpertsShape, weights: Mapping[str, Weight], part: Part | None = None):
        super().__init__()
        self.norm = RMSNorm(weights["norm"].data, shape.eps)
        self.logits = AdaptedLinear(weights["router"])
        self.router = Router(shape.routing, _optional(weights, "correction"))
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


class _RelativeGeometry(nn.Cell):
    """Parts of the geometry of an encoder and of its decoder; the cache is laid out as `StepGeometry` has it."""

    def __init__(self, shape: AttentionShape):
        super().__init__()
        self.head_offsets = Tensor((np.arange(shape.kv_heads) * shape.slots).astype(np.int32).reshape(-1, 1))
        self.block_size, self.reach = shape.block_size, shape.reach
        self.block_offsets = Tensor(np.arange(shape.block_size, dtype=np.int32))
        self.gather = ops.Gather()
        self.seen = Tensor(0.0, ms.float32)
        self.masked = Tensor(MASKED, ms.float32)

    def slots_of(self, block_tables: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """[B, blocks] and last positions [B] -> cache rows of every head [K, B, L], and their positions [1, 1, L]."""
        rows, blocks = block_tables.shape
        context = block_tables.reshape(rows, blocks, 1) * self.block_size + self.block_offsets
        context = context.reshape(1, rows, -1)
        key_positions = ops.arange(0, context.shape[2]).astype(ms.int32).reshape(1, 1, -1)
        return ops.expand_dims(self.head_offsets, 2) + within(context, key_positions, last), key_positions

    def mask(self, visible: Tensor) -> Tensor:
        """[B, Q or 1, L] of booleans -> what is added to scores [B, 1, Q or 1, L]."""
        return ops.expand_dims(ops.select(visible, self.seen, self.masked), 1)

    def distances(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        """Index [B, Q, L] into a head's bias of the distance from each query to each key."""
        return ops.clamp(key_positions - query_positions, -self.reach, self.reach) + self.reach


class SourceGeometry(_RelativeGeometry):
    """What all layers of an encoder share in a step, in which every sequence is whole and starts at 0."""

    def construct(
        self,
        positions: Tensor,
        slots: Tensor,
        block_tables: Tensor,
        query_starts: Tensor,
        query_index: Tensor,
        token_index: Tensor,
    ) -> tuple:
        """The inputs are those of `StepGeometry`.

        Returns write_slots [K, T]; context_slots [K, B, L]; mask [B, 1, 1, L]; distances [B, Q, L]; query_index [B, Q];
        token_index [T]; and for a source no cross_slots and cross_mask, but the first two again.
        """
        write_slots = self.head_offsets + slots.reshape(1, -1)
        lengths = query_starts[1:] - query_starts[:-1]
        context_slots, key_positions = self.slots_of(block_tables, lengths - 1)
        mask = self.mask(key_positions < lengths.reshape(-1, 1, 1))
        query_positions = ops.expand_dims(self.gather(positions, query_index, 0), 2)
        distances = self.distances(query_positions, key_positions)
        return write_slots, context_slots, mask, distances, query_index, token_index, context_slots, mask


class TargetGeometry(_RelativeGeometry):
    """What all layers of a decoder that attends to sources share in a step."""

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
        """As of a source, with a causal mask [B, 1, Q, L], and cross_slots [K, B, S] and cross_mask [B, 1, 1, S]."""
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
    """Attention over a paged cache with a bias by distance instead of rotation; as many key/value heads as heads.

    projected [T, (H + 2H) * D] -> [T, H * D]; of `cross` [T, H * D], which writes nothing into the cache.
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
        """`geometry` is what `SourceGeometry` or `TargetGeometry` returns."""
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


class RelativeAttentionHalf(nn.Cell):
    """x + output(attention(qkv(norm(x)))), by the scope of its shape."""

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
            self.attention = RelativeAttention(shape, caches, _optional(weights, "distances"))
            self.output = LinearResidual(weights["output"], part=part)

    def construct(self, x: Tensor, geometry: tuple) -> Tensor:
        projected = self.qkv(self.norm(x), geometry)
        if self.stores:
            kept = ops.transpose(projected.reshape(-1, 2 * self.heads, self.head_dim), (1, 0, 2))
            self.scatter(self.key_cache, geometry[0], kept[: self.heads])
            self.scatter(self.value_cache, geometry[0], kept[self.heads :])
            return x
        return self.output(self.attention(projected, geometry), x, geometry)


class Halves(nn.Cell):
    """x [T, hidden] through halves of layers, one after the other.

    The geometry is the step's; where adapters may be asked for, their numbers [T] come last.
    """

    def __init__(self, halves: Sequence[nn.Cell], part: Part | None = None):
        super().__init__()
        self.halves = nn.CellList(halves)

    def construct(self, x: Tensor, geometry: tuple) -> Tensor:
        for half in self.halves:
            x = half(x, geometry)
        return x


class OutputHead(nn.Cell):
    """x [T, hidden] -> logits [R, vocabulary] of the tokens that are wanted."""

    def __init__(
        self,
        vocabulary: int,
        hidden: int,
        eps: float,
        norm: Weight,
        weight: Weight,
        norm_bias: Weight | None = None,
        softcap: float | None = None,
    ):
        super().__init__()
        self.norm = _norm({"norm": norm} if norm_bias is None else {"norm": norm, "norm_bias": norm_bias}, eps)
        self.linear = AdaptedLinear(weight)
        self.has_softcap = softcap is not None
        if softcap is not None:
            self.softcap = Softcap(softcap)
        self.gather = ops.Gather()

    def construct(self, x: Tensor, wanted: Tensor, logit_rows: Tensor, geometry: tuple) -> Tensor:
        """`geometry` is the step's, of which adapters come last where they may be asked for."""
        adapters = (self.gather(geometry[-1], wanted, 0),) if self.linear.is_adapted else ()
        logits = self.linear(self.norm(self.gather(x, wanted, 0)), adapters)
        if self.has_softcap:
            logits = self.softcap(logits)
        return logits


def cache_shapes(shape: AttentionShape | LatentShape) -> tuple[tuple[int, ...], ...]:
    """Shapes of a layer's key and value cache, or of its cache of latents."""
    if isinstance(shape, LatentShape):
        return ((shape.slots, shape.width),)
    both = (shape.kv_heads * shape.slots, shape.head_dim)
    return both, both


def _norm(weights: Mapping[str, Weight], eps: float) -> RMSNorm | LayerNorm:
    """The norm before a half: LayerNorm where it has a bias."""
    if "norm_bias" in weights:
        return LayerNorm(weights["norm"].data, weights["norm_bias"].data, eps)
    return RMSNorm(weights["norm"].data, eps)


def _post_norm(weights: Mapping[str, Weight], eps: float) -> RMSNorm | None:
    return RMSNorm(weights["post_norm"].data, eps) if "post_norm" in weights else None


def _optional(weights: Mapping[str, Weight], name: str) -> Parameter | None:
    return weights[name].data if name in weights else None
