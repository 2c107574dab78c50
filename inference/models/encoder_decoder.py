"""T5: an encoder that writes the keys and values of a source to the paged cache, and a decoder that attends to them.

The other families share one decoder block; T5 has its own, made of the same kernels. The encoder's own keys and values
are also kept in the blocks of the source, in the first layer's memory, until the decoder's overwrite them. A source
therefore needs no memory beyond its blocks in the cache that all sequences share. Takes and returns tensors, never
text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import ModuleType

import numpy as np
from mindspore import Tensor, nn
from mindspore import dtype as mstype

from inference.kernels.formats import Format, unpack
from inference.kernels.shapes import AttentionShape, FeedForwardShape, Part
from inference.kernels.weight import Weight
from inference.models.architecture.t5_config import T5Config
from inference.models.compiled_network import CompiledNetwork, graph_turn
from inference.models.kv_cache import LayerCache
from inference.models.runner import ModelRunner, part_of
from inference.models.step import SequenceStep, StepBatch
from inference.models.weights.parameters import DISTANCES, HEAD, SHARED

Caches = list[LayerCache]
Weights = Mapping[str, Weight]


class SourceEncoder(nn.Cell):
    """tokens [T] of whole sources -> their states [T, hidden]; also writes the decoder's keys and values for them.

    The inputs are the first ones of `StepBatch`; the block tables are those of the sources.
    """

    def __init__(
        self,
        kernels: ModuleType,
        config: T5Config,
        shape: AttentionShape,
        weights: Weights,
        caches: Caches,
        part: Part | None = None,
    ):
        super().__init__()
        whole, store = replace(shape, scope="whole"), replace(shape, scope="store")
        distances = distance_bias(kernels, config, weights, "encoder")
        self.geometry = kernels.SourceGeometry(whole)
        self.embedding = kernels.Embedding(weights[SHARED], config.vocab_size, config.hidden_size, part)
        sublayers = []
        for layer in range(config.num_encoder_layers):
            prefix = f"encoder.block.{layer}.layer."
            attention = _attention(weights, f"{prefix}0.", "SelfAttention.qkv", distances)
            sublayers.append(kernels.RelativeAttentionSublayer(whole, attention, caches[0], part))
            sublayers.append(_feed_forward(kernels, config, weights, f"{prefix}1.", part))
        norm = weights["encoder.final_layer_norm.weight"]
        for layer, cache in enumerate(caches):
            kept = weights[f"decoder.block.{layer}.layer.1.EncDecAttention.kv.weight"]
            sublayers.append(kernels.RelativeAttentionSublayer(store, {"norm": norm, "qkv": kept}, cache))
        self.layers = kernels.Sublayers(sublayers, part)
        vector, matrix = _inputs()
        self.is_adapted = _is_adapted(weights)
        adapters = (vector,) if self.is_adapted else ()
        self.set_inputs(vector, vector, vector, matrix, vector, matrix, vector, *adapters)

    def construct(
        self,
        tokens: Tensor,
        positions: Tensor,
        slots: Tensor,
        block_tables: Tensor,
        query_starts: Tensor,
        query_index: Tensor,
        token_index: Tensor,
        adapters: Tensor | None = None,
    ) -> Tensor:
        geometry = self.geometry(positions, slots, block_tables, query_starts, query_index, token_index)
        if self.is_adapted:
            geometry = (*geometry, adapters)
        return self.layers(self.embedding(tokens), geometry)


class TargetDecoder(nn.Cell):
    """tokens [T] of answers -> the output of the kernels' OutputHead for the tokens in logits_index [R].

    The inputs are those of `StepBatch`, then the block tables [B, blocks] and lengths [B] of the sequences' sources.
    """

    def __init__(
        self,
        kernels: ModuleType,
        config: T5Config,
        shape: AttentionShape,
        weights: Weights,
        caches: Caches,
        part: Part | None = None,
    ):
        super().__init__()
        cross = replace(shape, scope="cross")
        distances = distance_bias(kernels, config, weights, "decoder")
        self.geometry = kernels.TargetGeometry(shape)
        self.embedding = kernels.Embedding(weights[SHARED], config.vocab_size, config.hidden_size, part)
        sublayers = []
        for layer, cache in enumerate(caches):
            prefix = f"decoder.block.{layer}.layer."
            own = _attention(weights, f"{prefix}0.", "SelfAttention.qkv", distances)
            to_source = _attention(weights, f"{prefix}1.", "EncDecAttention.q")
            sublayers.append(kernels.RelativeAttentionSublayer(shape, own, cache, part))
            sublayers.append(kernels.RelativeAttentionSublayer(cross, to_source, cache, part))
            sublayers.append(_feed_forward(kernels, config, weights, f"{prefix}2.", part))
        self.layers = kernels.Sublayers(sublayers, part)
        self.head = kernels.OutputHead(
            config.vocab_size,
            config.hidden_size,
            config.norm_eps,
            head_norm(kernels, config, weights),
            weights[SHARED if config.tie_embeddings else HEAD],
        )
        vector, matrix = _inputs()
        self.is_adapted = _is_adapted(weights)
        sources = (matrix, vector, vector) if self.is_adapted else (matrix, vector)
        self.set_inputs(vector, vector, vector, matrix, vector, matrix, vector, vector, vector, *sources)

    def construct(
        self,
        tokens: Tensor,
        positions: Tensor,
        slots: Tensor,
        block_tables: Tensor,
        query_starts: Tensor,
        query_index: Tensor,
        token_index: Tensor,
        logits_index: Tensor,
        logit_rows: Tensor,
        cross_tables: Tensor,
        cross_lengths: Tensor,
        adapters: Tensor | None = None,
    ) -> Tensor:
        geometry = self.geometry(
            positions, slots, block_tables, query_starts, query_index, token_index, cross_tables, cross_lengths
        )
        if self.is_adapted:
            geometry = (*geometry, adapters)
        x = self.embedding(tokens)  # [T, hidden]
        return self.head(self.layers(x, geometry), logits_index, logit_rows, geometry)


class EncoderDecoderRunner(ModelRunner):
    """A T5 ready to run: `encode` the sources of new sequences, then `step` with their decoder tokens."""

    config: T5Config

    def build(self, weights: Weights) -> CompiledNetwork:
        shape = self._shapes[0]
        assert isinstance(shape, AttentionShape)
        networks = (self.kernels, self.config, shape, weights, self._caches, part_of(self.shard, self.group))
        self._encoder = CompiledNetwork(SourceEncoder(*networks))
        return CompiledNetwork(TargetDecoder(*networks))

    def attention_shapes(self, cache_dtype: str) -> list[AttentionShape]:
        config = self.config
        shape = AttentionShape(
            config.hidden_size,
            config.num_heads,
            config.num_heads,
            config.head_dim,
            config.norm_eps,
            scale=1.0,
            window=None,
            num_blocks=self.num_blocks,
            block_size=self.block_size,
            cache_dtype=cache_dtype,
            reach=config.max_distance,
        )
        return [shape] * config.num_layers

    def warm_up(self) -> None:
        self.encode(StepBatch.build([SequenceStep([0], 0, [0])], self.block_size))
        self.step(StepBatch.build([SequenceStep([0], 0, [0], ([0], 1))], self.block_size))

    def encode(self, batch: StepBatch) -> None:
        """Writes the decoder's keys and values for whole sources to the blocks of their tables."""
        with graph_turn:
            tensors = self._tensors(batch)
            self._encoder(*tensors[:7], *(tensors[9:] if self._is_adapted else ())).asnumpy()


def distance_bias(kernels: ModuleType, config: T5Config, weights: Weights, stack: str) -> Weight:
    """Returns the bias of every head and distance [H * (2 * max_distance + 1)], from the stack's table of buckets."""
    weight = weights[f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    table = kernels.memory(weight.data)
    if table.dtype == np.uint8:
        table = unpack(table, weight.format, config.num_buckets, config.num_heads)
    bias = table[config.distance_buckets(bidirectional=stack == "encoder")].T  # [H, 2 * max_distance + 1]
    return _vector(kernels, f"{stack}.{DISTANCES}", bias.reshape(-1))


def head_norm(kernels: ModuleType, config: T5Config, weights: Weights) -> Weight:
    """Returns the decoder's last norm; for a tied output layer it also divides by the root of the hidden size."""
    weight = weights["decoder.final_layer_norm.weight"]
    if not config.tie_embeddings:
        return weight
    return _vector(kernels, "decoder.scaled_norm", kernels.memory(weight.data) * np.float32(config.hidden_size**-0.5))


def _vector(kernels: ModuleType, name: str, values: np.ndarray) -> Weight:
    data = kernels.empty(name, values.shape, np.float32)
    kernels.memory(data)[:] = values
    return Weight(data, Format.FLOAT32)


def _attention(weights: Weights, prefix: str, matrix: str, distances: Weight | None = None) -> dict[str, Weight]:
    """Returns the kernels' weights of an attention sublayer; `matrix` names its first projection."""
    named = {
        "norm": weights[f"{prefix}layer_norm.weight"],
        "qkv": weights[f"{prefix}{matrix}.weight"],
        "output": weights[f"{prefix}{matrix.split('.')[0]}.o.weight"],
    }
    return named if distances is None else {**named, "distances": distances}


def _feed_forward(kernels: ModuleType, config: T5Config, weights: Weights, prefix: str, part: Part | None) -> object:
    sizes = (config.hidden_size, config.intermediate_size, config.norm_eps, config.activation, config.gated)
    parts = {
        "norm": weights[f"{prefix}layer_norm.weight"],
        "gate_up": weights[f"{prefix}DenseReluDense.wi.weight"],
        "down": weights[f"{prefix}DenseReluDense.wo.weight"],
    }
    return kernels.FeedForwardSublayer(FeedForwardShape(*sizes), parts, part)


def _is_adapted(weights: Weights) -> bool:
    """Whether any weight has adapters, in which case encoder and decoder take adapter numbers as an input."""
    return any(weight.additions for weight in weights.values())


def _inputs() -> tuple[Tensor, Tensor]:
    return Tensor(shape=[None], dtype=mstype.int32), Tensor(shape=[None, None], dtype=mstype.int32)
