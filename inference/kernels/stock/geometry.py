"""Where the cache of a step's sequences lies, and what of it may be seen."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from inference.kernels.shapes import AttentionShape, LatentShape

# Added to the score of a position that must not be seen. Finite, so that a row of nothing else is no NaN.
MASKED = -1e30


class CacheGeometry(nn.Cell):
    """Slots and masks, which all layers of a step share.

    The cache of a layer is [K * slots, D]: head-major, so that a gather of a sequence's slots gives [K, B, L, D],
    which is what the batched products want, without a transposition of the context.
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
        """[B, blocks] and last positions [B] -> cache rows of every head [K, B, L], and their positions [1, 1, L]."""
        rows, blocks = block_tables.shape
        context = block_tables.reshape(rows, blocks, 1) * self.block_size + self.block_offsets
        context = context.reshape(1, rows, -1)
        key_positions = ops.arange(0, context.shape[2]).astype(ms.int32).reshape(1, 1, -1)
        # Slots after the last become the first. They are masked, but what an earlier sequence left there may be no
        # numbers, which a weight of 0 does not undo.
        first = ops.broadcast_to(context[:, :, :1], context.shape)
        context = ops.select(key_positions <= last.reshape(1, -1, 1), context, first)
        return ops.expand_dims(self.head_offsets, 2) + context, key_positions

    def mask(self, visible: Tensor) -> Tensor:
        """[B, Q or 1, L] of booleans -> what is added to scores [B, 1, Q or 1, L]."""
        return ops.expand_dims(ops.select(visible, self.seen, self.masked), 1)
