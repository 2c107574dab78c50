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

from inference.kernels.shapes import AttentionShape, FeedForwardShape, Part, windows_of
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


class LinearResidual(nn.Cell):
    """residual + linear(x), of which each rank of a group has some columns."""

    def __init__(self, weight: Parameter, bias: Parameter | None = None, part: Part | None = None):
        super().__init__()
        self.linear = Linear(weight, bias)
        self.is_shared = part is not None
        if part is not None:
            self.sum = ops.AllReduce(group=part.group)

    def construct(self, x: Tensor, residual: Tensor) -> Tensor:
        y = self.linear(x)
        return residual + (self.sum(y) if self.is_shared else y)


class SiluMultiply(nn.Cell):
    """gate_up [T, 2F] -> silu(gate) * up [T, F] (SwiGLU: Shazeer 2020)."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width
        self.silu = nn.SiLU()

    def construct(self, gate_up: Tensor) -> Tensor:
        return self.silu(gate_up[:, : self.width]) * gate_up[:, self.width :]


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


class StepGeometry(nn.Cell):
    """What all layers of a step share: rotation angles, cache slots, attention masks.

    The cache of a layer is [K * slots, D]: head-major, so that a gather of a sequence's slots gives [K, B, L, D],
    which is what the batched products want, without a transposition of the context.
    """

    def __init__(self, inverse_frequencies: np.ndarray, shapes: Sequence[AttentionShape]):
        super().__init__()
        shape = shapes[0]
        self.inverse_frequencies = Tensor(inverse_frequencies.reshape(1, 1, -1))
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
        """positions, slots [T]; block_tables [B, blocks]; query_starts is not used.

        query_index [B, Q] picks each sequence's tokens from the flat batch; token_index [T] undoes it. Both are
        returned after cos, sin [T, 1, D]; write_slots [K, T]; context_slots [K, B, L]; masks [B, 1, Q, L], one for
        each window.
        """
        angles = positions.astype(ms.float32).reshape(-1, 1, 1) * self.inverse_frequencies
        cos, sin = ops.cos(angles), ops.sin(angles)
        cos, sin = ops.concat((cos, cos), -1), ops.concat((-sin, sin), -1)
        write_slots = self.head_offsets + slots.reshape(1, -1)
        rows, blocks = block_tables.shape
        context = block_tables.reshape(rows, blocks, 1) * self.block_size + self.block_offsets
        context = context.reshape(1, rows, -1)  # [1, B, L]
        context_slots = ops.expand_dims(self.head_offsets, 2) + context
        key_positions = ops.arange(0, context.shape[2]).astype(ms.int32).reshape(1, 1, -1)
        query_positions = ops.expand_dims(self.gather(positions, query_index, 0), 2)  # [B, Q, 1]
        masks: tuple = ()
        for window in self.windows:
            visible = key_positions <= query_positions
            if window > 0:
                visible = ops.logical_and(visible, key_positions > query_positions - window)
            masks = masks + (ops.expand_dims(ops.select(visible, self.seen, self.masked), 1),)
        return cos, sin, write_slots, context_slots, masks, query_index, token_index


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
        query_norm: RMSNorm | None = None,
        key_norm: RMSNorm | None = None,
    ):
        super().__init__()
        head_dim = shape.head_dim
        self.heads, self.kv_heads, self.head_dim = shape.heads, shape.kv_heads, head_dim
        self.groups = shape.heads // shape.kv_heads
        self.key_cache, self.value_cache = caches
        self.mask_index = mask_index
        self.has_norm = query_norm is not None
        if query_norm is not None and key_norm is not None:
            self.query_norm, self.key_norm = query_norm, key_norm
        self.scale = head_dim**-0.5
        half = head_dim // 2
        self.swap_halves = Tensor(np.r_[half:head_dim, 0:half].astype(np.int32))
        self.gather = ops.Gather()
        self.scatter = ops.ScatterUpdate()
        self.scores = ops.BatchMatMul(transpose_b=True)
        self.weighted_sum = ops.BatchMatMul()
        self.softmax = ops.Softmax(-1)

    def construct(self, qkv: Tensor, geometry: tuple) -> Tensor:
        """`geometry` is what `StepGeometry` returns."""
        cos, sin, write_slots, context_slots, masks, query_index, token_index = geometry
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
        weights = self.softmax(scores + masks[self.mask_index])
        weights = weights.reshape(kv_heads, rows, self.groups * longest, -1)
        mixed = self.weighted_sum(weights, values).reshape(kv_heads, rows, self.groups, longest, dim)
        mixed = ops.transpose(mixed, (1, 3, 0, 2, 4)).reshape(-1, heads * dim)
        return self.gather(mixed, token_index, 0)


class AttentionHalf(nn.Cell):
    """x + output(attention(qkv(norm(x))))."""

    def __init__(
        self,
        shape: AttentionShape,
        frequencies: np.ndarray,
        mask_index: int,
        weights: Mapping[str, Weight],
        caches: tuple[Parameter, Parameter],
        part: Part | None = None,
    ):
        super().__init__()
        self.norm = RMSNorm(weights["norm"].data, shape.eps)
        self.qkv = Linear(weights["qkv"].data, _optional(weights, "qkv_bias"))
        norms = (_optional(weights, "query_norm"), _optional(weights, "key_norm"))
        query_norm, key_norm = (None if norm is None else RMSNorm(norm, shape.eps) for norm in norms)
        self.attention = Attention(shape, caches, mask_index, query_norm, key_norm)
        self.output = LinearResidual(weights["output"].data, _optional(weights, "output_bias"), part)

    def construct(self, x: Tensor, geometry: tuple) -> Tensor:
        return self.output(self.attention(self.qkv(self.norm(x)), geometry), x)


class FeedForwardHalf(nn.Cell):
    """x + down(silu(gate(norm(x))) * up(norm(x)))."""

    def __init__(self, shape: FeedForwardShape, weights: Mapping[str, Weight], part: Part | None = None):
        super().__init__()
        self.norm = RMSNorm(weights["norm"].data, shape.eps)
        self.gate_up = Linear(weights["gate_up"].data, _optional(weights, "gate_up_bias"))
        self.activation = SiluMultiply(shape.width)
        self.down = LinearResidual(weights["down"].data, _optional(weights, "down_bias"), part)

    def construct(self, x: Tensor, geometry: tuple) -> Tensor:
        return self.down(self.activation(self.gate_up(self.norm(x))), x)


class Halves(nn.Cell):
    """x [T, hidden] through halves of layers, one after the other."""

    def __init__(self, halves: Sequence[AttentionHalf | FeedForwardHalf], part: Part | None = None):
        super().__init__()
        self.halves = nn.CellList(halves)

    def construct(self, x: Tensor, geometry: tuple) -> Tensor:
        for half in self.halves:
            x = half(x, geometry)
        return x


class OutputHead(nn.Cell):
    """x [T, hidden] -> logits [R, vocabulary] of the tokens that are wanted."""

    def __init__(self, vocabulary: int, hidden: int, eps: float, norm: Weight, weight: Weight):
        super().__init__()
        self.norm = RMSNorm(norm.data, eps)
        self.linear = Linear(weight.data)
        self.gather = ops.Gather()

    def construct(self, x: Tensor, wanted: Tensor, logit_rows: Tensor) -> Tensor:
        return self.linear(self.norm(self.gather(x, wanted, 0)))


def cache_shapes(shape: AttentionShape) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of a layer's key and value cache."""
    both = (shape.kv_heads * shape.slots, shape.head_dim)
    return both, both


def _optional(weights: Mapping[str, Weight], name: str) -> Parameter | None:
    return weights[name].data if name in weights else None
