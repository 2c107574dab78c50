"""Sizes a model's KV cache: as much as the work needs, within the free memory.

Knows prompts, weights and memory; knows nothing about kernels, engines or terminals.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from inference.context import available_memory
from inference.errors import ConfigError, InferenceError
from inference.generation.text import EncodedPrompt
from inference.kernels.formats import WeightFormat
from inference.models import kv_cache
from inference.models.block_pool import NULL_BLOCK
from inference.models.source import ModelSource
from inference.models.weights.sharding import Shard
from inference.models.weights.weight_formats import weight_bytes


def positions_needed(prompts: Iterable[EncodedPrompt], source: ModelSource) -> int:
    """Returns the number of cache positions that lets all prompts run without waiting for each other."""
    return sum(sorted(_lengths(prompts, source), reverse=True)[: source.config.rows_at_once])


def longest_row(prompts: Iterable[EncodedPrompt], source: ModelSource) -> int:
    """Returns the number of cache positions that the longest prompt needs together with its answer."""
    return max(_lengths(prompts, source), default=1)


def _lengths(prompts: Iterable[EncodedPrompt], source: ModelSource) -> Iterator[int]:
    block = source.config.engine.block_size
    for prompt in prompts:
        request = prompt.request(source.model.context_length)
        # Count the prompt for each sample: they share its blocks only if the prefix cache is on.
        yield from [request.most_blocks(block) * block] * prompt.generation.num_return_sequences


def num_blocks(
    source: ModelSource,
    positions: int | None,
    weight_format: WeightFormat | None,
    row: int = 1,
    shard: Shard | None = None,
    sharing: int = 1,
) -> int:
    """Returns the number of cache blocks to allocate, including the null block.

    Uses `engine.kv_cache_memory` if it is set. Otherwise allocates what the work needs, or, if that is unknown,
    what `max_sequences` rows of full context length need, up to half of the memory that the weights leave free.
    Blocks that are never used take no physical memory.

    Args:
        positions: positions that the work needs; None if unknown.
        weight_format: the format of the matrices in memory; None for plain float32.
        row: minimum number of positions: those of the longest row.
        shard: the part of the model in this process.
        sharing: the number of processes that share the memory.

    Raises:
        InferenceError: the weights and the smallest cache do not fit into memory.
        ConfigError: `engine.kv_cache_memory` is too small for a row.
    """
    settings, model = source.config.engine, (shard or source.shard()).config
    # Kernels with plain weights have a plain cache, too.
    is_plain = weight_format is None or settings.kernels == "stock"
    size = kv_cache.block_bytes(model, settings.block_size, "float32" if is_plain else settings.kv_cache_dtype)
    weights = weight_bytes(model, None if is_plain else weight_format) + source.adapters.num_bytes
    available = available_memory() // sharing
    free = available - weights
    least = -(-row // settings.block_size)
    if settings.kv_cache_memory is not None:
        blocks = settings.kv_cache_memory // size
        if blocks < least:
            raise ConfigError(
                f"{source.config.origin('engine.kv_cache_memory')}: engine.kv_cache_memory is "
                f"{settings.kv_cache_memory} bytes, {_what_takes(row, settings.block_size)} takes {least * size}",
                "raise it, or leave it out",
            )
    else:
        wanted = positions if positions is not None else source.config.rows_at_once * model.cache_length
        blocks = min(-(-wanted // settings.block_size), max(free, 0) // 2 // size)
    if blocks < least or blocks * size > free:
        raise InferenceError(
            f"{source.name} needs {weights / 2**30:.1f} GiB for weights and "
            f"{max(blocks, least) * size / 2**30:.2f} GiB for the KV cache, {available / 2**30:.1f} GiB are free",
            "take a smaller model, a narrower engine.weight_dtype, fewer max_new_tokens, or set engine.kv_cache_memory",
        )
    return blocks + NULL_BLOCK + 1


def _what_takes(row: int, block_size: int) -> str:
    if row <= block_size:
        return f"a block of {block_size} positions"
    return f"the longest prompt with its answer ({row} positions)"
