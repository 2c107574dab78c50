"""The paged KV cache: memory for keys and values in blocks of a fixed number of positions.

Knows sizes and memory; which block belongs to which sequence is the scheduler's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from inference.models.config import ModelConfig

if TYPE_CHECKING:
    from mindspore import Parameter


@dataclass(frozen=True)
class LayerCache:
    """Keys and values of one layer, each [K * slots, D]: head-major, slot = block * block_size + offset."""

    keys: Parameter
    values: Parameter
    slots: int


def block_bytes(config: ModelConfig, block_size: int) -> int:
    """Bytes that one block takes over all layers, in float32."""
    return 2 * config.num_layers * block_size * config.kv_size * 4


def allocate(config: ModelConfig, num_blocks: int, block_size: int) -> list[LayerCache]:
    """A cache for every layer, zeroed: a slot that was never written is read (and masked), so it must be finite."""
    from inference.models.tensors import zeros

    slots = num_blocks * block_size
    shape = (config.num_kv_heads * slots, config.head_dim)
    return [
        LayerCache(zeros(f"cache.{layer}.keys", shape), zeros(f"cache.{layer}.values", shape), slots)
        for layer in range(config.num_layers)
    ]
