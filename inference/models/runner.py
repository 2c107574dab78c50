"""A model ready to run: network, weights and cache on the device.

Knows how to turn a step's arrays into logits; knows nothing about requests, sampling or text.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Protocol

import numpy as np

from inference.checkpoint.tensor import StoredTensor
from inference.kernels.formats import WeightFormat, pack_into
from inference.kernels.shapes import AttentionShape, LatentShape, Part
from inference.kernels.weight import Weight
from inference.models.architecture.config import ModelConfig
from inference.models.architecture.t5_config import AnyConfig
from inference.models.block_pool import BlockPool
from inference.models.compiled_network import CompiledNetwork, graph_turn
from inference.models.step import SequenceStep, StepBatch, StepResult
from inference.models.weights import loading, weight_formats
from inference.models.weights.lora import Adapters
from inference.models.weights.parameters import parameter_shapes
from inference.models.weights.sharding import PACKED, Pairs, Shard
from inference.parallel import heartbeat
from inference.parallel.group import Group


class StepModel(Protocol):
    """The interface of a model that the engine uses: the network here, a toy in the tests."""

    block_size: int
    num_blocks: int
    context_length: int
    blocks: BlockPool

    def step(self, batch: StepBatch) -> StepResult: ...

    def warm_up(self) -> None:
        """Runs a dummy step, so that compilation happens now."""

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None: ...

    def encode(self, batch: StepBatch) -> None:
        """Encodes the sources of new requests; called before their first step."""

    def hidden_states(self, batch: StepBatch) -> np.ndarray:
        """Writes the batch's keys and values, and returns the states after the final norm: float32 [T, hidden]."""


@dataclass
class LoadTimes:
    """Seconds spent before generation: loading the parameters, and compiling the graph (in a warm-up step)."""

    load: float = 0.0
    compile: float = 0.0


class ModelRunner:
    """The decoder with its parameters and cache.

    Args:
        config: the architecture.
        pairs: stored tensors and their places in the parameters (`loading.fit`); None for random weights.
        num_blocks: size of the KV cache.
        block_size: positions per block.
        kernels: `kernels.stock` or `kernels.native`.
        weight_format: format or formats of the matrices in memory; None keeps the checkpoint's format.
        cache_dtype: type of the KV cache, one of `shapes.CACHE_DTYPES`.
        seed: seed for random weights.
        progress: called with each tensor as it is loaded.
        shard: this rank's part of the model, to which `pairs` belong; None for the whole model.
        group: the ranks that share the model.
        adapters: the adapters that sequences may select; a merged adapter is already in `pairs`.
    """

    def __init__(
        self,
        config: AnyConfig,
        pairs: Pairs | None,
        *,
        num_blocks: int,
        block_size: int,
        kernels: ModuleType | None = None,
        weight_format: WeightFormat | None = None,
        cache_dtype: str = "float32",
        seed: int = 0,
        progress: Callable[[StoredTensor], None] | None = None,
        shard: Shard | None = None,
        group: Group | None = None,
        adapters: Adapters | None = None,
    ):
        from inference.kernels import stock
        from inference.models import kv_cache

        self.shard = shard or Shard(config)
        self.group = group
        self.config = self.shard.config
        self.block_size, self.num_blocks = block_size, num_blocks
        self.blocks = BlockPool(num_blocks, block_size)
        self.context_length = config.context_length
        self.times = LoadTimes()
        self.kernels = kernels or stock
        self.weight_format = weight_format or weight_formats.stored_format(pairs)
        started = time.perf_counter()
        parameters = self._load(pairs, seed, progress)
        additions = adapters.additions(self.shard) if adapters else {}
        self._is_adapted = bool(additions)
        for name, parts in additions.items():
            parameters[name] = replace(parameters[name], additions=parts)
        self.cache_dtype = cache_dtype
        self._shapes = self.attention_shapes(cache_dtype)
        self._caches = kv_cache.allocate(self.kernels, self._shapes)
        self._final_norm = [parameters.get(f"model.norm.{part}") for part in ("weight", "bias")]
        self._hidden_network: CompiledNetwork | None = None
        with graph_turn:
            self._network = self.build(parameters)
        self.times.load = time.perf_counter() - started

    def attention_shapes(self, cache_dtype: str) -> Sequence[AttentionShape | LatentShape]:
        """Returns the shape of each attention layer that has a cache."""
        from inference.models.decoder import attention_shapes

        assert isinstance(self.config, ModelConfig)
        return attention_shapes(self.config, self.num_blocks, self.block_size, cache_dtype)

    def build(self, parameters: dict[str, Weight]) -> CompiledNetwork:
        """Builds the network on these parameters and the caches."""
        from inference.models.decoder import Decoder

        assert isinstance(self.config, ModelConfig)
        part = part_of(self.shard, self.group)
        return CompiledNetwork(Decoder(self.kernels, self.config, self._shapes, parameters, self._caches, part))

    def _load(
        self, pairs: Pairs | None, seed: int, progress: Callable[[StoredTensor], None] | None
    ) -> dict[str, Weight]:
        from inference.kernels import stock

        is_stock = self.kernels is stock
        shapes = self.shard.parameter_shapes()
        formats = weight_formats.formats_of(self.shard.model, self.weight_format)
        loaded, destinations = {}, {}
        # Use tensors that `convert` packed directly from the mapped file.
        in_place = {} if is_stock else _usable_in_place(pairs or [])
        for name in shapes:
            precision = formats[name]
            if name in in_place:
                loaded[name] = Weight(in_place[name].map(), precision)
                if progress:
                    progress(in_place[name])
                continue
            memory = None if is_stock or len(shapes[name]) == 1 else precision
            dtype, shape = weight_formats.memory_layout(shapes[name], memory)
            data = self.kernels.empty(name, shape, dtype)
            array = self.kernels.memory(data)
            # The last panel may have padding rows that are never written.
            array[-1:] = 0
            loaded[name] = Weight(data, precision)
            destinations[name] = loading.Destination(array, memory, precision, _packer(is_stock))
        if pairs is None:
            loading.fill_random(parameter_shapes(self.shard.model), destinations, seed, shard=self.shard)
        else:
            loading.load([pair for pair in pairs if pair[1].parameter in destinations], destinations, progress)
        return loaded

    def compile(self) -> None:
        """Compiles the graph by running a dummy step."""
        started = time.perf_counter()
        self.warm_up()
        self.times.compile = time.perf_counter() - started

    def warm_up(self) -> None:
        """Runs a dummy step, so that compilation happens now."""
        # Block 0 does not belong to any sequence (the scheduler keeps it as padding), so writing to it is safe.
        self.step(StepBatch.build([SequenceStep([0], 0, [0])], self.block_size))

    def encode(self, batch: StepBatch) -> None:
        raise NotImplementedError(f"{self.config.architecture} has no encoder")

    def step(self, batch: StepBatch) -> StepResult:
        """Writes the batch's keys and values, and returns the next tokens of its sequences."""
        heartbeat.busy()
        with graph_turn:
            given = self._network(*self._tensors(batch)).asnumpy()
        first = self.shard.first_token
        if given.ndim == 2:
            return StepResult.of_logits(given, batch, first)
        # The native head finds the largest logit itself.
        count = len(batch.logits_index)
        best, values = given[:count].astype(np.int64), given[count : 2 * count]
        logits = given[2 * count :].reshape(len(batch.logit_rows), self.config.vocab_size)
        return StepResult(np.where(best < 0, -1, best + first), logits, values)

    def hidden_states(self, batch: StepBatch) -> np.ndarray:
        """Writes the batch's keys and values, and returns the states after the final norm: float32 [T, hidden].

        The first call compiles a separate network.
        """
        from inference.models.decoder import Decoder, HiddenStates

        heartbeat.busy()
        with graph_turn:
            if self._hidden_network is None:
                assert isinstance(self._network.network, Decoder)
                self._hidden_network = CompiledNetwork(HiddenStates(self._network.network))
            states = self._hidden_network(*self._tensors(batch)).asnumpy()
        weight, bias = (None if part is None else self.kernels.memory(part.data) for part in self._final_norm)
        if bias is not None:
            states = states - states.mean(axis=1, keepdims=True)
        states = states / np.sqrt(np.square(states).mean(axis=1, keepdims=True) + self.config.norm_eps) * weight
        return states if bias is None else states + bias

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies keys and values of whole blocks, one pair (from, to) after another."""
        from inference.models import kv_cache

        kv_cache.copy_blocks(self.kernels, self._caches, self._shapes[0], pairs)

    def _tensors(self, batch: StepBatch) -> list:
        from mindspore import Tensor

        arrays = batch.adapted_arrays() if self._is_adapted else batch.arrays()
        return [Tensor.from_numpy(array) for array in arrays]


def part_of(shard: Shard, group: Group | None) -> Part | None:
    """Returns what the kernels need to know about a rank's part; None if no group shares the model."""
    return None if group is None else Part(shard.is_first, shard.first_token, group.name, group.handle)


def _usable_in_place(pairs: Pairs) -> dict[str, StoredTensor]:
    """Returns the parameters that are stored packed, as one contiguous run of bytes of a file."""
    parts = Counter(place.parameter for _, place in pairs)
    return {
        place.parameter: tensor
        for tensor, place in pairs
        if tensor.dtype == PACKED and tensor.can_be_mapped and parts[place.parameter] == 1
    }


def _packer(is_stock: bool) -> loading.PackInto:
    if is_stock:
        return pack_into
    from inference.kernels import library

    return library.pack_into
