"""Cache slots of a step's sequences, and masks of the visible positions."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from inference.kernels.shapes import AttentionShape, LatentShape

# Added to the score of a masked position. Finite, so that a fully masked row does not become NaN.
MASKED = -1e30


class CacheGeometry(nn.Cell):
    """Slots and masks that all layers of a step share.

    The cache of a layer is [K * slots, D]: head-major, so that gathering a sequence's slots gives [K, B, L, D], the
    layout of the batched products, without transposing the context.
    """

    def __init__(self, shape: AttentionShape | LatentShape):
        super().__init__()
        self.head_offsets = Tensor((np.arange(shape.kv_heads) * shape.slots).astype(np.int32).reshape(-1, 1))
        self.block_size = shape.block_size
        self.block_offsets = Tensor(np.arange(shape.block_size, dtype=np.int32))
        self.gather = ops.Gather()
        self.seen = Tensor(0.0, ms.float32)
        self.masked = Tensor(MASKED, ms.float32)

    def slots_of(self, block_tables: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """Map block tables [B, blocks] and last positions [B] to cache rows [K, B, L] and their positions [1, 1, L]."""
        rows, blocks = block_tables.shape
        context = block_tables.reshape(rows, blocks, 1) * self.block_size + self.block_offsets
        context = context.reshape(1, rows, -1)
        key_positions = ops.arange(0, context.shape[2]).astype(ms.int32).reshape(1, 1, -1)
        # Replace slots after the last by the first. They are masked, but may hold NaN from an earlier sequence, and a
        # weight of 0 does not remove NaN.
        first = ops.broadcast_to(context[:, :, :1], context.shape)
        context = ops.select(key_positions <= last.reshape(1, -1, 1), context, first)
        return ops.expand_dims(self.head_offsets, 2) + context, key_positions

    def mask(self, visible: Tensor) -> Tensor:
        """Turn booleans [B, Q or 1, L] into a mask to add to scores [B, 1, Q or 1, L]."""
        return ops.expand_dims(ops.select(visible, self.seen, self.masked), 1)
