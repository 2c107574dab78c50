"""The paged KV cache: memory for keys and values in blocks of a fixed number of positions.

Knows sizes and memory; which block belongs to which sequence is the scheduler's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from inference.kernels.shapes import AttentionShape
from inference.models.config import ModelConfig

if TYPE_CHECKING:
    from mindspore import Parameter


@dataclass(frozen=True)
class LayerCache:
    """Keys and values of one layer, in the layout that the kernels chose; slot = block * block_size + offset."""

    keys: Parameter
    values: Parameter


def block_bytes(config: ModelConfig, block_size: int, half: bool = False) -> int:
    """Bytes that one block takes over all layers."""
    return 2 * config.num_layers * block_size * config.kv_size * (2 if half else 4)


def allocate(kernels: ModuleType, shapes: list[AttentionShape]) -> list[LayerCache]:
    """A cache for every layer, zeroed: stock operators read (and mask) slots that were never written."""
    from inference.models.tensors import zeros

    caches = []
    for layer, shape in enumerate(shapes):
        keys, values = kernels.cache_shapes(shape)
        dtype = np.float16 if shape.half_cache else np.float32
        caches.append(
            LayerCache(zeros(f"cache.{layer}.keys", keys, dtype), zeros(f"cache.{layer}.values", values, dtype))
        )
    return caches


def copy_blocks(caches: Iterable[LayerCache], num_blocks: int, kv_heads: int, pairs: Sequence[tuple[int, int]]) -> None:
    """Copies whole blocks in every layer, one pair (from, to) after the other. On a CPU: through numpy's view."""
    for layer in caches:
        for parameter in (layer.keys, layer.values):
            memory = parameter.asnumpy()
            # Either a block holds all heads, or a head all blocks.
            heads = 1 if len(memory) == num_blocks else kv_heads
            blocks = memory.reshape(heads, num_blocks, -1)
            for source, target in pairs:
                blocks[:, target] = blocks[:, source]
