"""The paged KV cache: memory for keys and values in blocks of a fixed number of positions.

Knows sizes and memory; the scheduler decides which block belongs to which sequence.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from inference.kernels.shapes import AttentionShape, LatentShape
from inference.models.architecture.t5_config import AnyConfig

# A layer's memory in the kernels' layout: keys and values, or latents; slot = block * block_size + offset.
LayerCache = tuple[Any, ...]


def block_bytes(config: AnyConfig, block_size: int, dtype: str = "float32") -> int:
    """Returns the bytes of one block over all layers; int8 has a float32 scale for each cached vector."""
    scales = 4 * config.cache_vectors if dtype == "int8" else 0
    return config.num_layers * block_size * (config.cache_size * np.dtype(dtype).itemsize + scales)


def allocate(kernels: ModuleType, shapes: Sequence[AttentionShape | LatentShape]) -> list[LayerCache]:
    """Allocates a zeroed cache for every layer; stock operators read (and mask) slots that were never written."""
    return [
        tuple(
            kernels.zeros(f"cache.{layer}.{part}", size, np.dtype(shape.cache_dtype))
            for part, size in enumerate(kernels.cache_shapes(shape))
        )
        for layer, shape in enumerate(shapes)
    ]


def copy_blocks(
    kernels: ModuleType,
    caches: Iterable[LayerCache],
    shape: AttentionShape | LatentShape,
    pairs: Sequence[tuple[int, int]],
) -> None:
    """Copies whole blocks in every layer, one pair (from, to) after another."""
    for layer in caches:
        for data in layer:
            memory = kernels.memory(data)
            # The layout is either block-major (a block holds all heads) or head-major (a head holds all blocks).
            heads = 1 if len(memory) == shape.num_blocks else shape.kv_heads
            blocks = memory.reshape(heads, shape.num_blocks, -1)
            for source, target in pairs:
                blocks[:, target] = blocks[:, source]
