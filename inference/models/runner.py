"""A model ready to step: network, weights and cache on the device.

Knows how a step's arrays become logits; knows nothing about requests, sampling or text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol

import numpy as np

from inference.blocks import BlockPool
from inference.kernels.formats import Format, pack
from inference.kernels.weight import Weight
from inference.models import weights
from inference.models.checkpoint import StoredTensor
from inference.models.config import ModelConfig
from inference.models.parameters import parameter_shapes
from inference.models.step import SequenceStep, StepBatch
from inference.models.weights import Pairs


class StepModel(Protocol):
    """What the engine needs of a model; a toy in the tests, the network here."""

    block_size: int
    num_blocks: int
    context_length: int
    blocks: BlockPool

    def step(self, batch: StepBatch) -> np.ndarray: ...

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None: ...


@dataclass
class LoadTimes:
    """Seconds spent before the first step: filling the parameters, and compiling the graph (in the first step)."""

    load: float = 0.0
    compile: float = 0.0


class ModelRunner:
    """The decoder with its parameters and cache.

    Args:
        config: the architecture.
        pairs: stored tensors and their places (`weights.fit`), or None for random weights.
        num_blocks: size of the KV cache.
        block_size: positions a block.
        kernels: `kernels.stock` or `kernels.native`.
        weight_format: of the matrices in memory; None keeps what the checkpoint is stored in.
        half_cache: keep keys and values in float16.
        seed: of random weights.
        progress: called with each tensor as it is loaded.
    """

    def __init__(
        self,
        config: ModelConfig,
        pairs: Pairs | None,
        *,
        num_blocks: int,
        block_size: int,
        kernels: ModuleType | None = None,
        weight_format: Format | None = None,
        half_cache: bool = False,
        seed: int = 0,
        progress: Callable[[StoredTensor], None] | None = None,
    ):
        from inference.kernels import stock
        from inference.models import cache
        from inference.models.decoder import Decoder, attention_shapes

        self.config = config
        self.block_size, self.num_blocks = block_size, num_blocks
        self.blocks = BlockPool(num_blocks, block_size)
        self.context_length = config.context_length
        self.times = LoadTimes()
        self.kernels = kernels or stock
        self.weight_format = weight_format or weights.stored_format(pairs)
        started = time.perf_counter()
        parameters = self._load(pairs, seed, progress)
        shapes = attention_shapes(config, num_blocks, block_size, half_cache)
        self._caches = cache.allocate(self.kernels, shapes)
        self._network = Decoder(self.kernels, config, shapes, parameters, self._caches)
        self.times.load = time.perf_counter() - started

    def _load(
        self, pairs: Pairs | None, seed: int, progress: Callable[[StoredTensor], None] | None
    ) -> dict[str, Weight]:
        from inference.kernels import stock
        from inference.models.tensors import empty

        is_stock = self.kernels is stock
        shapes = parameter_shapes(self.config)
        loaded, destinations = {}, {}
        for name, precision in weights.formats_of(self.config, self.weight_format).items():
            memory = Format.FLOAT32 if is_stock else precision
            dtype, shape = weights.memory_layout(shapes[name], memory)
            parameter = empty(name, shape, dtype)
            loaded[name] = Weight(parameter, memory)
            destinations[name] = weights.Destination(parameter.asnumpy(), memory, precision, _quantiser(is_stock))
        if pairs is None:
            weights.fill_random(shapes, destinations, seed)
        else:
            weights.load(pairs, destinations, progress)
        return loaded

    def compile(self) -> None:
        """Compiles the graph, by a first step on a token that belongs to nobody."""
        started = time.perf_counter()
        # Block 0 belongs to no sequence (the scheduler keeps it as padding), so it may be written to.
        self.step(StepBatch.build([SequenceStep([0], 0, [0])], self.block_size))
        self.times.compile = time.perf_counter() - started

    def step(self, batch: StepBatch) -> np.ndarray:
        """Logits float32 [R, vocabulary] of the tokens that the batch names, after writing its keys and values."""
        return self._network(*self._tensors(batch)).asnumpy()

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies keys and values of whole blocks, one pair (from, to) after the other."""
        from inference.models import cache

        cache.copy_blocks(self._caches, self.num_blocks, self.config.num_kv_heads, pairs)

    @staticmethod
    def _tensors(batch: StepBatch) -> list:
        from mindspore import Tensor

        return [Tensor.from_numpy(array) for array in batch.arrays()]


def _quantiser(is_stock: bool) -> weights.Quantise:
    if is_stock:
        return pack
    from inference.kernels.library import quantise

    return quantise
