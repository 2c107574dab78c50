"""The paged KV cache: memory for keys and values in blocks of a fixed number of positions.

Knows sizes and memory; which block belongs to which sequence is the scheduler's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from inference.kernels.shapes import AttentionShape
from inference.models.config import ModelConfig


@dataclass(frozen=True)
class LayerCache:
    """Keys and values of one layer, in the layout that the kernels chose; slot = block * block_size + offset."""

    keys: Any
    values: Any


def block_bytes(config: ModelConfig, block_size: int, half: bool = False) -> int:
    """Bytes that one block takes over all layers."""
    return 2 * config.num_layers * block_size * config.kv_size * (2 if half else 4)


def allocate(kernels: ModuleType, shapes: list[AttentionShape]) -> list[LayerCache]:
    """A cache for every layer, zeroed: stock operators read (and mask) slots that were never written."""
    caches = []
    for layer, shape in enumerate(shapes):
        keys, values = kernels.cache_shapes(shape)
        dtype = np.float16 if shape.half_cache else np.float32
        caches.append(
            LayerCache(
                kernels.zeros(f"cache.{layer}.keys", keys, dtype), kernels.zeros(f"cache.{layer}.values", values, dtype)
            )
        )
    return caches


def copy_blocks(
    kernels: ModuleType, caches: Iterable[LayerCache], shape: AttentionShape, pairs: Sequence[tuple[int, int]]
) -> None:
    """Copies whole blocks in every layer, one pair (from, to) after the other."""
    for layer in caches:
        for data in (layer.keys, layer.values):
            memory = kernels.memory(data)
            # Either a block holds all heads, or a head all blocks.
            heads = 1 if len(memory) == shape.num_blocks else shape.kv_heads
            blocks = memory.reshape(heads, shape.num_blocks, -1)
            for source, target in pairs:
                blocks[:, target] = blocks[:, source]
