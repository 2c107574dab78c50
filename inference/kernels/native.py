"""The decoder's halves as custom operators on the CPU, two for each layer.

The same interface as `stock`, and the same results up to rounding. MindSpore charges about 25 microseconds for an
operator with dynamic shapes; two operators a layer keep that below the time that a small model's arithmetic takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore import dtype as mstype
from mindspore.ops import CustomRegOp, DataType

from inference.kernels.build import library_path
from inference.kernels.shapes import AttentionShape, FeedForwardShape
from inference.kernels.weight import Weight

# Whether weights and cache can be kept narrower than float32.
NARROW = True
_TYPES = {
    "f": DataType.F32_Default,
    "h": DataType.F16_Default,
    "i": DataType.I32_Default,
    "l": DataType.I64_Default,
    "b": DataType.U8_Default,
}
# Types of each operator's inputs, a letter each; `b` is a packed weight, `c` a cache (float32 or float16). MindSpore
# keeps the first registration of a name, so all combinations are registered at once.
_INPUTS = {
    "embedding": "ibl",
    "attention_half": "fiiiif" + "fbfffbf" + "cc" + "l",
    "feed_forward_half": "f" + "fbfbf" + "l",
    "output_head": "ffbiilb",
}


def _operator(function: str) -> ops.Custom:
    """A custom operator of the library with one float32 output; all shapes are dynamic."""
    letters = _INPUTS[function]
    register = CustomRegOp(function)
    for index in range(len(letters)):
        register = register.input(index, f"x{index}")
    register = register.output(0, "y")
    for cache in "fh" if "c" in letters else "f":
        kinds = letters.replace("c", cache)
        register = register.dtype_format(*[_TYPES[kind] for kind in kinds], DataType.F32_Default)
    return ops.Custom(
        f"{library_path()}:{function}",
        out_shape=None,
        out_dtype=mstype.float32,
        func_type="aot",
        reg_info=register.target("CPU").get_op_info(),
    )


def float_bits(value: float) -> int:
    """A float32 as the integer with the same bits: layouts are integers."""
    return int(np.float32(value).view(np.uint32))


class Embedding(nn.Cell):
    """tokens [T] -> rows of the weight, whatever its format, as float32 [T, hidden]."""

    def __init__(self, weight: Weight, hidden: int):
        super().__init__()
        self.weight = weight.parameter
        # Its length carries the width to where the output's shape is inferred, which sees shapes and no values.
        self.layout = Tensor(np.array([weight.format.code] + [0] * (hidden - 1), np.int64))
        self.operator = _operator("embedding")

    def construct(self, tokens: Tensor) -> Tensor:
        return self.operator(tokens, self.weight, self.layout)


class StepGeometry(nn.Cell):
    """The kernels work out all that a step shares; this only picks what they need."""

    def __init__(self, inverse_frequencies: np.ndarray, shapes: Sequence[AttentionShape]):
        super().__init__()

    def construct(
        self,
        positions: Tensor,
        slots: Tensor,
        block_tables: Tensor,
        query_starts: Tensor,
        query_index: Tensor,
        token_index: Tensor,
    ) -> tuple:
        return positions, slots, block_tables, query_starts


class AttentionHalf(nn.Cell):
    """x + output(attention(qkv(norm(x)))) as one operator."""

    def __init__(
        self,
        shape: AttentionShape,
        frequencies: np.ndarray,
        mask_index: int,
        weights: Mapping[str, Weight],
        caches: tuple[Parameter, Parameter],
    ):
        super().__init__()
        layout = [shape.hidden, shape.heads, shape.kv_heads, shape.head_dim, shape.block_size, shape.window or 0]
        layout += [int(shape.half_cache), float_bits(shape.eps)]
        layout += [weights["qkv"].format.code, weights["output"].format.code]
        layout += [int(name in weights) for name in ("qkv_bias", "output_bias", "query_norm")]
        self.layout = Tensor(np.array(layout, np.int64))
        self.frequencies = Tensor(frequencies.astype(np.float32))
        names = ("norm", "qkv", "qkv_bias", "query_norm", "key_norm", "output", "output_bias")
        # An operator has a fixed number of inputs: the norm stands in for what is absent, and is not read as it.
        given = [weights.get(name, weights["norm"]).parameter for name in names]
        self.norm, self.qkv, self.qkv_bias, self.query_norm, self.key_norm, self.output, self.output_bias = given
        self.keys, self.values = caches
        self.operator = _operator("attention_half")

    def construct(self, x: Tensor, geometry: tuple) -> Tensor:
        positions, slots, block_tables, query_starts = geometry
        return self.operator(
            x,
            positions,
            slots,
            block_tables,
            query_starts,
            self.frequencies,
            self.norm,
            self.qkv,
            self.qkv_bias,
            self.query_norm,
            self.key_norm,
            self.output,
            self.output_bias,
            self.keys,
            self.values,
            self.layout,
        )


class FeedForwardHalf(nn.Cell):
    """x + down(silu(gate(norm(x))) * up(norm(x))) as one operator."""

    def __init__(self, shape: FeedForwardShape, weights: Mapping[str, Weight]):
        super().__init__()
        layout = [shape.hidden, shape.width, float_bits(shape.eps)]
        layout += [weights["gate_up"].format.code, weights["down"].format.code, int("down_bias" in weights)]
        self.layout = Tensor(np.array(layout, np.int64))
        names = ("norm", "gate_up", "gate_up_bias", "down", "down_bias")
        given = [weights.get(name, weights["norm"]).parameter for name in names]
        self.norm, self.gate_up, self.gate_up_bias, self.down, self.down_bias = given
        self.operator = _operator("feed_forward_half")

    def construct(self, x: Tensor) -> Tensor:
        return self.operator(x, self.norm, self.gate_up, self.gate_up_bias, self.down, self.down_bias, self.layout)


class OutputHead(nn.Cell):
    """Final norm and logits of the tokens that are wanted, as one operator, which compares the logits as they come.

    x [T, hidden], wanted [R], logit_rows [1 + S] -> float32 [R + S * vocabulary]: the best token of each row (-1 where a
    logit is no number), then the logits of the rows that `logit_rows` names after its first number, which is not read:
    tensors of no elements are best avoided.
    """

    def __init__(self, vocabulary: int, hidden: int, eps: float, norm: Weight, weight: Weight):
        super().__init__()
        self.layout = Tensor(np.array([hidden, float_bits(eps), weight.format.code], np.int64))
        # Its length carries the vocabulary to where the output's shape is inferred.
        self.vocabulary = Tensor(np.zeros(vocabulary, np.uint8))
        self.norm, self.weight = norm.parameter, weight.parameter
        self.operator = _operator("output_head")

    def construct(self, x: Tensor, wanted: Tensor, logit_rows: Tensor) -> Tensor:
        return self.operator(x, self.norm, self.weight, wanted, logit_rows, self.layout, self.vocabulary)


def cache_shapes(shape: AttentionShape) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of a layer's key and value cache; keys lie transposed within a block."""
    heads = (shape.num_blocks, shape.kv_heads)
    return (*heads, shape.head_dim, shape.block_size), (*heads, shape.block_size, shape.head_dim)
