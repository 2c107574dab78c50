"""Building blocks of sublayers, the embedding and the output head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from inference.kernels.formats import whole_panels
from inference.kernels.shapes import FeedForwardShape, Part
from inference.kernels.weight import Weight


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


def norm_of(weights: Mapping[str, Weight], eps: float) -> RMSNorm | LayerNorm | nn.Identity:
    """Return the norm before a sublayer, if it has one: LayerNorm if the norm has a bias, otherwise RMSNorm."""
    if "norm" not in weights:
        return nn.Identity()
    if "norm_bias" in weights:
        return LayerNorm(weights["norm"].data, weights["norm_bias"].data, eps)
    return RMSNorm(weights["norm"].data, eps)


def post_norm_of(weights: Mapping[str, Weight], eps: float) -> RMSNorm | None:
    return RMSNorm(weights["post_norm"].data, eps) if "post_norm" in weights else None


def optional(weights: Mapping[str, Weight], name: str) -> Parameter | None:
    return weights[name].data if name in weights else None


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
    """x [T, in] -> the addition of each token's adapter to a product, [T, out].

    All adapters' down matrices form one product, from which each token keeps its own adapter's part.
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
        """adapters [T]: each token's adapter, from 1; 0 for none."""
        is_own = (ops.expand_dims(adapters, 1) == self.owners).astype(ms.float32)
        return self.matmul(self.matmul(x, self.down) * is_own, self.up)


class LowRankSums(nn.Cell):
    """LowRankSum for a matrix whose parts have separate inputs: x [parts, T, in] -> [parts, T, size].

    Args:
        weight: [parts * room, in].
        size: rows used per part.
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
        """adapters [T]: each token's adapter, from 1; 0 for none."""
        is_own = (adapters.reshape(1, -1, 1) == self.owners).astype(ms.float32)
        return self.matmul(self.matmul(x, self.down) * is_own, self.up)


class AdaptedLinear(nn.Cell):
    """`Linear` plus the adapters' additions, if any."""

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
    """residual + linear(x), or residual + norm(linear(x)); each rank of a group holds some of the columns of x."""

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
    """gate_up [T, 2F] -> activation(gate) * up [T, F] (Shazeer 2020); without a gate, up [T, F] -> activation(up)."""

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


class Parts(nn.Cell):
    """x [parts, T, in] -> [parts, T, size]: multiply by each part of weight [parts * room, in]; add the adapters."""

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


class Embedding(nn.Cell):
    """tokens [T] -> rows of the weight [T, hidden]; each rank of a group holds some of the rows."""

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


class Sublayers(nn.Cell):
    """Run x [T, hidden] through all sublayers in order.

    The geometry is the step's; if the model has adapters, their numbers [T] come last.
    """

    def __init__(self, sublayers: Sequence[nn.Cell], part: Part | None = None):
        super().__init__()
        self.sublayers = nn.CellList(sublayers)

    def construct(self, x: Tensor, geometry: tuple) -> Tensor:
        for sublayer in self.sublayers:
            x = sublayer(x, geometry)
        return x


class OutputHead(nn.Cell):
    """x [T, hidden] -> logits [R, vocabulary] of the requested tokens."""

    def __init__(
        self,
        vocabulary: int,
        hidden: int,
        eps: float,
        norm: Weight,
        weight: Weight,
        norm_bias: Weight | None = None,
        softcap: float | None = None,
        bias: Weight | None = None,
    ):
        super().__init__()
        self.norm = norm_of({"norm": norm} if norm_bias is None else {"norm": norm, "norm_bias": norm_bias}, eps)
        self.linear = AdaptedLinear(weight, None if bias is None else bias.data)
        self.has_softcap = softcap is not None
        if softcap is not None:
            self.softcap = Softcap(softcap)
        self.gather = ops.Gather()

    def construct(self, x: Tensor, wanted: Tensor, logit_rows: Tensor, geometry: tuple) -> Tensor:
        """`geometry` is the step's; if the model has adapters, their numbers [T] come last."""
        adapters = (self.gather(geometry[-1], wanted, 0),) if self.linear.is_adapted else ()
        logits = self.linear(self.norm(self.gather(x, wanted, 0)), adapters)
        if self.has_softcap:
            logits = self.softcap(logits)
        return logits
