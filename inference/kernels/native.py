"""The decoder on the CPU: three custom operators in a graph, one of which runs all layers.

It has the same interface as `stock`, and the same results up to rounding. MindSpore spends about 25 microseconds per
operator with dynamic shapes and checks every parameter of a network at every call, which exceeds the arithmetic time of
a small model. Therefore weights and cache are plain memory, and the operators receive a program: one record
(`records.py`) per sublayer, with its sizes and the addresses of its weights.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

import mindspore
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype
from mindspore.ops import CustomRegOp, DataType
from numpy.typing import DTypeLike

from inference.kernels.build import library_path
from inference.kernels.formats import PANEL, Format, pack_into, whole_panels
from inference.kernels.library import sound
from inference.kernels.records import (
    AttentionRecord,
    EmbeddingRecord,
    ExpertsRecord,
    FeedForwardRecord,
    HeadRecord,
    LatentRecord,
    LoraEntry,
    LoraTable,
    MatrixRecord,
    RanksRecord,
    Record,
)
from inference.kernels.shapes import (
    ACTIVATIONS,
    CACHE_DTYPES,
    SCOPES,
    AttentionShape,
    ExpertsShape,
    FeedForwardShape,
    LatentShape,
    Part,
)
from inference.kernels.weight import Addition, Weight

# Whether weights and cache can be narrower than float32.
NARROW = True
# The environment variable that enables MindSpore's compile cache.
COMPILE_CACHE = "MS_COMPILER_CACHE_ENABLE"
_TYPES = {
    "f": DataType.F32_Default,
    "i": DataType.I32_Default,
    "l": DataType.I64_Default,
    "b": DataType.U8_Default,
}
# Types of each operator's inputs, one letter each.
_INPUTS = {
    "embedding": "ilb",
    "sublayers": "fiiiil",
    "cross_sublayers": "fiiiiiil",
    "adapted_sublayers": "fiiiiil",
    "adapted_cross_sublayers": "fiiiiiiil",
    "output_head": "fiilb",
    "adapted_output_head": "fiilbi",
}


def empty(name: str, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """Allocate a weight with undefined contents."""
    return np.empty(shape, dtype)


def zeros(name: str, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """Allocate a zeroed cache."""
    return np.zeros(shape, dtype)


def memory(data: np.ndarray) -> np.ndarray:
    """Return the writable memory of an array from `empty`."""
    return data


def turn_compile_cache_off() -> bool:
    """Disable MindSpore's compile cache, because graphs hold addresses here; return whether it was enabled."""
    wanted = os.environ.get(COMPILE_CACHE) == "1" or bool(mindspore.get_context("enable_compile_cache"))
    if wanted:
        os.environ[COMPILE_CACHE] = "0"
        mindspore.set_context(enable_compile_cache=False)
    return wanted


def _operator(function: str) -> ops.Custom:
    """Create a custom operator of the library with one float32 output; all shapes are dynamic."""
    register = CustomRegOp(function)
    for index in range(len(_INPUTS[function])):
        register = register.input(index, f"x{index}")
    types = [_TYPES[letter] for letter in _INPUTS[function]]
    register = register.output(0, "y").dtype_format(*types, DataType.F32_Default)
    return ops.Custom(
        f"{library_path()}:{function}",
        out_shape=None,
        out_dtype=mstype.float32,
        func_type="aot",
        reg_info=register.target("CPU").get_op_info(),
    )


def _address(array: np.ndarray | None) -> int:
    """Return the address of an array; 0 for None. The holder of the address must keep the array alive."""
    assert array is None or array.flags.c_contiguous
    return 0 if array is None else array.ctypes.data


def _matrix(weight: Weight | None) -> MatrixRecord:
    return MatrixRecord() if weight is None else MatrixRecord(weight.format.code, _address(weight.data))


def _weights(weights: Mapping[str, Weight]) -> dict[str, MatrixRecord | int]:
    """Return record fields: matrices, and the addresses of vectors."""
    return {
        name: _address(weight.data) if weight.data.ndim == 1 else _matrix(weight) for name, weight in weights.items()
    }


class AdapterTable:
    """The adapters' additions to a matrix: a LoraTable and everything that it points to.

    Attributes:
        address: address of the table; 0 if nothing is added. The holder of the address must keep this object alive.
    """

    def __init__(self, weight: Weight | None):
        self.kept: list[object] = []
        # Parts of a matrix may share an adapter's `up`.
        self._packed: dict[tuple, np.ndarray] = {}
        self.address = self._table(weight.additions) if weight is not None and weight.additions else 0

    def _table(self, additions: Sequence[Addition]) -> int:
        """Build a table of these additions and return its address."""
        starts, widths, entries = [0], [0], []
        for adapter in range(1, max(addition.adapter for addition in additions) + 1):
            width = 0
            for addition in additions:
                if addition.adapter == adapter:
                    entries.append(self._entry(addition, width))
                    width += len(addition.down)
            starts.append(len(entries))
            widths.append(width)
        entry_list = (LoraEntry * len(entries))(*entries)
        first = self._kept(np.array(starts, np.int64))
        table = LoraTable(len(starts) - 1, max(widths), first, ctypes.addressof(entry_list))
        self.kept += [entry_list, table]
        return ctypes.addressof(table)

    def _kept(self, array: np.ndarray) -> int:
        self.kept.append(array)
        return _address(array)

    def _entry(self, addition: Addition, offset: int) -> LoraEntry:
        rows, rank = addition.up.shape
        first, lane = divmod(addition.first_row, PANEL)
        key = (addition.up.ctypes.data, addition.up.shape, addition.up.strides, lane)
        if key not in self._packed:
            # Prepend zero rows so that its panels align with the matrix's.
            up = np.zeros(Format.FLOAT32.shape(lane + rows, rank), np.uint8)
            pack_into(addition.up, Format.FLOAT32, up, lane)
            self._packed[key] = up
        up, down = self._packed[key], np.ascontiguousarray(addition.down, np.float32)
        return LoraEntry(first, len(up), rank, offset, self._kept(down), self._kept(up))


class PartAdapterTables(AdapterTable):
    """Adapter tables of a matrix of `count` parts, each with its own input: one table per part, or null.

    Args:
        room: rows per part.
    """

    def __init__(self, weight: Weight, count: int, room: int):
        super().__init__(None)
        if not weight.additions:
            return
        parts: list[list[Addition]] = [[] for _ in range(count)]
        for addition in weight.additions:
            part, first_row = divmod(addition.first_row, room)
            parts[part].append(replace(addition, first_row=first_row))
        self.address = self._kept(np.array([self._table(part) if part else 0 for part in parts], np.int64))


def _addresses(tables: Mapping[str, AdapterTable]) -> dict[str, int]:
    return {f"{name}_lora": table.address for name, table in tables.items()}


class Embedding(nn.Cell):
    """Look up tokens [T] in a weight of any format -> float32 [T, hidden]."""

    def __init__(self, weight: Weight, vocabulary: int, hidden: int, part: Part | None = None):
        super().__init__()
        self.weight = weight
        place = {"first_token": part.first_token, "group": part.handle} if part else {}
        record = EmbeddingRecord(hidden=hidden, tokens=vocabulary, weight=_matrix(weight), **place)
        self.record = Tensor(sound(record).numbers())
        # Its length passes the width to shape inference, which cannot see values.
        self.width = Tensor(np.zeros(hidden, np.uint8))
        self.operator = _operator("embedding")

    def construct(self, tokens: Tensor) -> Tensor:
        return self.operator(tokens, self.record, self.width)


class StepGeometry(nn.Cell):
    """Select the inputs that the kernels need; the kernels compute everything that a step's layers share."""

    def __init__(self, rotations: Sequence[np.ndarray], shapes: Sequence[AttentionShape | LatentShape]):
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


class SourceGeometry(StepGeometry):
    """The step geometry of an encoder."""

    def __init__(self, shape: AttentionShape):
        super().__init__((), (shape,))


class TargetGeometry(nn.Cell):
    """The step geometry of a decoder with cross-attention."""

    def __init__(self, shape: AttentionShape):
        super().__init__()

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
        return positions, slots, block_tables, query_starts, cross_tables, cross_lengths


class AttentionSublayer:
    """The record of x + output(attention(qkv(norm(x))))."""

    def __init__(
        self,
        shape: AttentionShape,
        rotation: np.ndarray | None,
        mask_index: int,
        rotation_index: int,
        weights: Mapping[str, Weight],
        caches: tuple[np.ndarray, np.ndarray],
        part: Part | None = None,
    ):
        self.is_cross = shape.scope == "cross"
        slopes = None if shape.slopes is None else np.array(shape.slopes, np.float32)
        # Without an angle, rotation changes nothing.
        rotation = rotation if rotation is not None and rotation[0].any() else None
        tables = {name: AdapterTable(weights.get(name)) for name in ("qkv", "output")}
        self.is_adapted = any(table.address for table in tables.values())
        self.kept = (weights, caches, rotation, slopes, tables)
        self.record = AttentionRecord(
            hidden=shape.hidden,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_size=shape.head_dim,
            block_size=shape.block_size,
            window=shape.window or 0,
            cache_type=CACHE_DTYPES.index(shape.cache_dtype),
            scope=SCOPES.index(shape.scope),
            reach=shape.reach,
            norms_all_heads=shape.norms_all_heads,
            norms_rotated=shape.norms_rotated,
            eps=shape.eps,
            scale=shape.scale,
            softcap=shape.softcap or 0,
            rotation=_address(rotation),
            slopes=_address(slopes),
            keys=_address(caches[0]),
            values=_address(caches[1]),
            **_weights(weights),
            **_addresses(tables),
        )


class RelativeAttentionSublayer(AttentionSublayer):
    """The record of attention with a distance bias instead of rotation, `distances` [H * (2 * reach + 1)]."""

    def __init__(
        self,
        shape: AttentionShape,
        weights: Mapping[str, Weight],
        caches: tuple[np.ndarray, np.ndarray],
        part: Part | None = None,
    ):
        super().__init__(shape, None, 0, 0, weights, caches, part)


class LatentAttentionSublayer:
    """The record of x + output(latent attention)."""

    def __init__(
        self,
        shape: LatentShape,
        rotation: np.ndarray,
        mask_index: int,
        rotation_index: int,
        weights: Mapping[str, Weight],
        caches: tuple[np.ndarray, ...],
        part: Part | None = None,
    ):
        tables = {
            **{name: AdapterTable(weights.get(name)) for name in ("down", "query_up", "output")},
            "key_up": PartAdapterTables(weights["key_up"], shape.heads, whole_panels(shape.rank)),
            "value_up": PartAdapterTables(weights["value_up"], shape.heads, whole_panels(shape.value)),
        }
        self.is_adapted = any(table.address for table in tables.values())
        turns = np.ascontiguousarray(rotation, np.float32)
        self.kept = (weights, caches, turns, tables)
        self.record = LatentRecord(
            hidden=shape.hidden,
            heads=shape.heads,
            query_rank=shape.query_rank,
            rank=shape.rank,
            nope=shape.nope,
            rope=shape.rope,
            value=shape.value,
            block_size=shape.block_size,
            cache_type=CACHE_DTYPES.index(shape.cache_dtype),
            eps=shape.eps,
            latent_eps=shape.latent_eps,
            scale=shape.scale,
            rotation=_address(turns),
            cache=_address(caches[0]),
            **_weights(weights),
            **_addresses(tables),
        )


class FeedForwardSublayer:
    """The record of x + down(activation(gate(norm(x))) * up(norm(x)))."""

    is_cross = False

    def __init__(self, shape: FeedForwardShape, weights: Mapping[str, Weight], part: Part | None = None):
        tables = {name: AdapterTable(weights[name]) for name in ("gate_up", "down")}
        self.is_adapted = any(table.address for table in tables.values())
        self.kept = (weights, tables)
        self.record = FeedForwardRecord(
            hidden=shape.hidden,
            width=shape.width,
            activation=ACTIVATIONS.index(shape.activation),
            gated=shape.gated,
            parallel=shape.parallel,
            eps=shape.eps,
            **_weights(weights),
            **_addresses(tables),
        )


class ExpertsSublayer:
    """The record of x + the outputs of the experts chosen by norm(x) and of the shared expert."""

    def __init__(self, shape: ExpertsShape, weights: Mapping[str, Weight], part: Part | None = None):
        routing = shape.routing
        tables = {
            **{name: AdapterTable(weights.get(name)) for name in ("router", "shared_gate_up", "shared_down")},
            "gate_up": PartAdapterTables(weights["gate_up"], routing.experts, 2 * whole_panels(shape.width)),
            "down": PartAdapterTables(weights["down"], routing.experts, whole_panels(shape.hidden)),
        }
        self.is_adapted = any(table.address for table in tables.values())
        self.kept = (weights, tables)
        self.record = ExpertsRecord(
            hidden=shape.hidden,
            width=shape.width,
            shared_width=shape.shared_width,
            shared_gate=shape.shared_gate,
            experts=routing.experts,
            chosen=routing.chosen,
            groups=routing.groups,
            chosen_groups=routing.chosen_groups,
            group_best=routing.group_best,
            sigmoid=routing.scoring == "sigmoid",
            normalize=routing.normalize,
            routed_scale=routing.scale,
            eps=shape.eps,
            **_weights(weights),
            **_addresses(tables),
        )


def parallel_sublayers(attention: AttentionSublayer, feed_forward: FeedForwardSublayer) -> list:
    """Return sublayers that both read norm(x) and add to x; the norm is the attention's."""
    return [attention, feed_forward]


class Sublayers(nn.Cell):
    """Run x [T, hidden] through all sublayers in order, as one operator."""

    def __init__(
        self,
        sublayers: Sequence[AttentionSublayer | LatentAttentionSublayer | FeedForwardSublayer | ExpertsSublayer],
        part: Part | None = None,
    ):
        super().__init__()
        self.kept = list(sublayers)
        records: list[Record] = [RanksRecord(group=part.handle, adds_residual=part.is_first)] if part else []
        records += [sublayer.record for sublayer in sublayers]
        self.program = Tensor(np.concatenate([sound(record).numbers() for record in records]))
        self.has_cross = any(isinstance(sublayer, AttentionSublayer) and sublayer.is_cross for sublayer in sublayers)
        self.is_adapted = any(sublayer.is_adapted for sublayer in sublayers)
        name = "cross_sublayers" if self.has_cross else "sublayers"
        self.operator = _operator(f"adapted_{name}" if self.is_adapted else name)
        self.inputs = 6 if self.has_cross else 4

    def construct(self, x: Tensor, geometry: tuple) -> Tensor:
        """`geometry` is the step's; if the model has adapters, their numbers [T] come last."""
        inputs = geometry[: self.inputs]
        if self.is_adapted:
            inputs = (*inputs, geometry[-1])
        return self.operator(x, *inputs, self.program)


class OutputHead(nn.Cell):
    """Final norm and logits of the requested tokens, as one operator, which finds the best logit as it computes them.

    x [T, hidden], wanted [R], logit_rows [1 + S] -> float32 [2 R + S * vocabulary]: the best token of each row (-1 if
    a logit is NaN or +inf, or all are -inf), its logit (NaN if one is NaN or +inf), then the logits of the rows in
    `logit_rows[1:]`. The first element of `logit_rows` is not read; it avoids an empty tensor.
    """

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
        table = AdapterTable(weight)
        self.is_adapted = table.address != 0
        self.kept = (norm, weight, norm_bias, bias, table)
        record = HeadRecord(
            hidden=hidden,
            vocabulary=vocabulary,
            eps=eps,
            softcap=softcap or 0,
            norm=_address(norm.data),
            norm_bias=_address(None if norm_bias is None else norm_bias.data),
            weight=_matrix(weight),
            bias=_address(None if bias is None else bias.data),
            lora=table.address,
        )
        self.record = Tensor(sound(record).numbers())
        # Its length passes the vocabulary size to shape inference.
        self.vocabulary = Tensor(np.zeros(vocabulary, np.uint8))
        self.operator = _operator("adapted_output_head" if self.is_adapted else "output_head")

    def construct(self, x: Tensor, wanted: Tensor, logit_rows: Tensor, geometry: tuple) -> Tensor:
        """`geometry` is the step's; if the model has adapters, their numbers [T] come last."""
        adapters = (geometry[-1],) if self.is_adapted else ()
        return self.operator(x, wanted, logit_rows, self.record, self.vocabulary, *adapters)


def cache_shapes(shape: AttentionShape | LatentShape) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of a layer's key and value cache (keys transposed within a block), or of its latent cache.

    An int8 block is followed by its scales, four bytes each: one per vector, two per vector of a latent cache.
    """
    scale = 4 if shape.cache_dtype == "int8" else 0
    if isinstance(shape, LatentShape):
        return ((shape.num_blocks, shape.block_size, shape.width + 2 * scale),)
    heads, size = (shape.num_blocks, shape.kv_heads), shape.head_dim + scale
    return (*heads, size, shape.block_size), (*heads, shape.block_size, size)
