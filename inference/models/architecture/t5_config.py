"""The architecture of T5, an encoder and a decoder, read from its `config.json` or a MindFormers YAML.

Knows sizes and the buckets of relative positions; knows nothing about tensors, files or devices. Keys are spelled as in
Hugging Face internally; MindFormers' names are translated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from inference.files.fields import Fields
from inference.files.values import TOKEN_ID
from inference.models.architecture import tensor_names
from inference.models.architecture.config import ModelConfig, Storage
from inference.models.architecture.sizes import HEAD, HEADS, HIDDEN, LAYERS, WIDTH, check_sizes

# Names in MindFormers or in other T5 configs -> Hugging Face's names.
OTHER_NAMES = {
    "hidden_size": "d_model",
    "intermediate_size": "d_ff",
    "head_dim": "d_kv",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "hidden_act": "feed_forward_proj",
    "max_position_embeddings": "n_positions",
    "start_token_id": "decoder_start_token_id",
    "rms_norm_eps": "layer_norm_epsilon",
}
# Hugging Face's `feed_forward_proj` -> our activation, and whether it is gated; gated-gelu is the tanh approximation.
FEED_FORWARDS = {
    "relu": ("relu", False),
    "gated-gelu": ("gelu_tanh", True),
    "gated-relu": ("relu", True),
    "gated-silu": ("silu", True),
}


@dataclass(frozen=True)
class T5Config:
    """Sizes of a T5: pre-norm layers with RMSNorm, relative position biases, unscaled attention, no other bias.

    `context_length` is the maximum length of a source, and of an answer, in tokens.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_encoder_layers: int
    num_layers: int
    num_heads: int
    head_dim: int
    norm_eps: float
    context_length: int
    num_buckets: int
    max_distance: int
    activation: str
    gated: bool
    tie_embeddings: bool
    decoder_start: int

    @property
    def storage(self) -> Storage:
        """How checkpoints name and lay out its tensors."""
        return Storage(tensor_names.T5)

    @property
    def query_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.query_size

    @property
    def cache_size(self) -> int:
        """Number of values per position in a layer's cache."""
        return 2 * self.kv_size

    @property
    def cache_vectors(self) -> int:
        """Number of vectors per position in a layer's cache, each of which has a scale if the cache is int8."""
        return 2 * self.num_heads

    @property
    def cache_length(self) -> int:
        """Maximum number of cache positions that a request needs, for its source and its answer together."""
        return 2 * self.context_length

    @property
    def num_parameters(self) -> int:
        attention = 4 * self.hidden_size * self.query_size + self.hidden_size
        feed_forward = (3 if self.gated else 2) * self.hidden_size * self.intermediate_size + self.hidden_size
        layers = self.num_encoder_layers * (attention + feed_forward) + self.num_layers * (2 * attention + feed_forward)
        ends = self.vocab_size * self.hidden_size * (1 if self.tie_embeddings else 2) + 2 * self.hidden_size
        return layers + ends + 2 * self.num_buckets * self.num_heads

    def distance_buckets(self, bidirectional: bool) -> np.ndarray:
        """Returns the bucket of each query-key distance, int32 [2 * max_distance + 1], starting at -max_distance.

        Each near distance has its own bucket, far distances share buckets of logarithmic size, and all from
        `max_distance` on share the last one. If attention is not bidirectional, keys ahead count as distance 0.
        Source: Raffel et al. 2020 (https://arxiv.org/abs/1910.10683), section 2.1.
        """
        distances = np.arange(-self.max_distance, self.max_distance + 1)
        count, first = self.num_buckets, np.zeros_like(distances)
        if bidirectional:
            count //= 2
            first = (distances > 0) * count
            distances = np.abs(distances)
        else:
            distances = np.maximum(-distances, 0)
        exact = count // 2
        # Compute in float32 as in training, so that a distance at a boundary falls into the same bucket.
        logarithms = np.log(np.maximum(distances, 1).astype(np.float32) / np.float32(exact))
        steps = logarithms / np.float32(math.log(self.max_distance / exact)) * np.float32(count - exact)
        far = np.minimum(exact + steps.astype(np.int32), count - 1)
        return (first + np.where(distances < exact, distances, far)).astype(np.int32)


AnyConfig = ModelConfig | T5Config


def read_t5_config(values: Mapping[str, Any], architecture: str, where: str) -> T5Config:
    """Reads a T5's sizes from Hugging Face's keys or MindFormers'.

    Args:
        values: keys of `config.json`, overridden by a YAML's `model_config`.
        where: the file to name in errors.

    Raises:
        ConfigError: a size is missing or of the wrong type, or a feature is not supported.
    """
    fields = Fields({OTHER_NAMES.get(key, key): value for key, value in values.items() if value is not None}, where)
    feed_forward = fields.get("feed_forward_proj", "relu")
    if not isinstance(feed_forward, str) or feed_forward not in FEED_FORWARDS:
        raise fields.error("feed_forward_proj", f"one of {', '.join(FEED_FORWARDS)}")
    activation, gated = FEED_FORWARDS[feed_forward]
    layers, buckets = (
        fields.integer("num_layers", reader=LAYERS),
        fields.integer("relative_attention_num_buckets", 32, WIDTH),
    )
    max_distance = fields.integer("relative_attention_max_distance", 128, WIDTH)
    if buckets % 4 or max_distance <= buckets // 2:
        raise fields.error("relative_attention_num_buckets", "a multiple of 4, at most twice the maximal distance")
    start_key = "pad_token_id" if fields.get("decoder_start_token_id") is None else "decoder_start_token_id"
    model = T5Config(
        architecture=architecture,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=fields.integer("d_model", reader=HIDDEN),
        intermediate_size=fields.integer("d_ff", reader=WIDTH),
        num_encoder_layers=layers,
        num_layers=fields.integer("num_decoder_layers", layers, LAYERS),
        num_heads=fields.integer("num_heads", reader=HEADS),
        head_dim=fields.integer("d_kv", 64, HEAD),
        norm_eps=fields.epsilon("layer_norm_epsilon", 1e-6),
        # Positions are relative, so the trained length n_positions is not a limit: a YAML may request more.
        context_length=fields.integer("seq_length", fields.integer("n_positions", 512)),
        num_buckets=buckets,
        max_distance=max_distance,
        activation=activation,
        gated=gated,
        # transformers 5 writes `tie_word_embeddings: true` for every T5; if they are untied, it also writes that the
        # output is not scaled.
        tie_embeddings=fields.flag("tie_word_embeddings", True) and fields.flag("scale_decoder_outputs", True),
        decoder_start=fields.read_or(start_key, TOKEN_ID, 0),
    )
    check_sizes(model, where)
    return model
