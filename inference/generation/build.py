"""Builds a runner from a `ModelSource`: chooses the kernels, the weight format and the size of the KV cache.

Reports to the user through the `say` that it is given; knows nothing about terminals.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

from inference import kernels
from inference.checkpoint.tensor import StoredTensor
from inference.config import InferenceConfig
from inference.errors import ConfigError
from inference.generation.cache_size import num_blocks
from inference.kernels.formats import Format, WeightFormat
from inference.models.architecture.t5_config import AnyConfig, T5Config
from inference.models.runner import ModelRunner
from inference.models.source import ModelSource
from inference.models.weights.sharding import Pairs
from inference.models.weights.weight_formats import describe_quantized, stored_format
from inference.parallel.start import Ranks

Say = Callable[[str], None]
"""Takes a line for the user."""


def runner_class(config: AnyConfig) -> type[ModelRunner]:
    """Returns the class that runs a model of this architecture."""
    if isinstance(config, T5Config):
        from inference.models.encoder_decoder import EncoderDecoderRunner

        return EncoderDecoderRunner
    return ModelRunner


def weight_format_of(source: ModelSource, pairs: Pairs | None) -> WeightFormat:
    """Returns the format that `engine.weight_dtype` selects; `auto` is the format of the checkpoint's tensors.

    Raises:
        ConfigError: the weights are packed in another format.
    """
    name = source.config.engine.weight_dtype
    if source.packed is not None:
        if name not in ("auto", source.packed.value):
            raise ConfigError(
                f"{source.config.origin('engine.weight_dtype')}: engine.weight_dtype is {name}, the weights of "
                f"{source.directory} are packed as {source.packed.value}",
                "give auto, or convert the original checkpoint",
            )
        return source.packed
    return stored_format(pairs) if name == "auto" else Format(name)


def say_what_becomes_of(pairs: Pairs | None, weight_format: WeightFormat, say: Say) -> None:
    """Reports the formats into which a quantized checkpoint is converted; reports nothing for other checkpoints."""
    line = describe_quantized(pairs, weight_format)
    if line:
        say(line)


def choose_kernels(config: InferenceConfig, say: Say) -> ModuleType:
    """Returns the kernels that `engine.kernels` selects; reports it if they are not the fast ones."""
    chosen = kernels.choose(
        config.engine.kernels,
        device_target=config.context.device_target,
        mode=config.context.mode,
        block_size=config.engine.block_size,
        threads=config.engine.threads,
        say=say,
    )
    dtype = config.engine.kv_cache_dtype
    if dtype != "float32" and not chosen.NARROW:
        say(f"engine.kv_cache_dtype {dtype} needs the native kernels: the cache is in float32")
    return chosen


def build_runner(
    source: ModelSource,
    pairs: Pairs | None,
    kernels: ModuleType,
    blocks: int,
    say: Say,
    progress: Callable[[StoredTensor], None] | None = None,
    ranks: Ranks | None = None,
) -> ModelRunner:
    """Loads this process's part of a model; does not compile it."""
    engine = source.config.engine
    weight_format = weight_format_of(source, pairs)
    if ranks is None or ranks.topology.rank == 0:
        for note in source.notes:
            say(note)
        say_what_becomes_of(pairs, weight_format, say)
    return runner_class(source.model)(
        source.model,
        pairs,
        num_blocks=blocks,
        block_size=engine.block_size,
        kernels=kernels,
        weight_format=weight_format,
        cache_dtype=engine.kv_cache_dtype if kernels.NARROW else "float32",
        seed=source.config.seed or 0,
        progress=progress,
        shard=source.shard(ranks.topology.model_rank if ranks else 0),
        group=ranks.group if ranks else None,
        adapters=source.adapters,
    )


def share(
    source: ModelSource, pairs: Pairs | None, kernels: ModuleType, ranks: Ranks, positions: int | None, row: int
) -> tuple[int, tuple[int | None, int]]:
    """Returns the number of cache blocks that this rank has room for, and the (positions, row) it was computed for."""
    weight_format, shard = format_in_memory(source, pairs, kernels), source.shard(ranks.topology.model_rank)
    return num_blocks(source, positions, weight_format, row, shard, ranks.links.sharing_memory), (positions, row)


def format_in_memory(source: ModelSource, pairs: Pairs | None, kernels: ModuleType) -> WeightFormat | None:
    """Returns the format of the matrices in memory; None for plain float32."""
    return weight_format_of(source, pairs) if kernels.NARROW else None
