"""A model ready to step: network, weights and cache on the device.

Knows how a step's arrays become logits; knows nothing about requests, sampling or text.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

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

    def step(self, batch: StepBatch) -> np.ndarray: ...


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
        seed: int = 0,
        progress: Callable[[StoredTensor], None] | None = None,
    ):
        from inference.models import cache
        from inference.models.decoder import Decoder
        from inference.models.tensors import empty

        self.config = config
        self.block_size, self.num_blocks = block_size, num_blocks
        self.context_length = config.context_length
        self.times = LoadTimes()
        started = time.perf_counter()
        parameters = {name: empty(name, shape) for name, shape in parameter_shapes(config).items()}
        views = {name: parameter.asnumpy() for name, parameter in parameters.items()}
        if pairs is None:
            weights.fill_random(views, seed)
        else:
            weights.load(pairs, views, progress)
        caches = cache.allocate(config, num_blocks, block_size)
        self._network = Decoder(config, parameters, caches, block_size)
        self.times.load = time.perf_counter() - started

    def compile(self) -> None:
        """Compiles the graph, by a first step on a token that belongs to nobody."""
        started = time.perf_counter()
        # Block 0 belongs to no sequence (the scheduler keeps it as padding), so it may be written to.
        self.step(StepBatch.build([SequenceStep([0], 0, [0])], self.block_size))
        self.times.compile = time.perf_counter() - started

    def step(self, batch: StepBatch) -> np.ndarray:
        """Logits float32 [R, vocabulary] of the tokens that the batch names, after writing its keys and values."""
        return self._network(*self._tensors(batch)).asnumpy()

    @staticmethod
    def _tensors(batch: StepBatch) -> list:
        from mindspore import Tensor

        return [Tensor.from_numpy(array) for array in batch.arrays()]
