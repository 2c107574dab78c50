"""The decoder: one block, driven by config fields, for every decoder-only family.

Knows how layers are put together; the arithmetic is the kernels'. Takes and gives tensors, never text.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

import numpy as np
from mindspore import Tensor, nn
from mindspore import dtype as mstype

from inference.kernels.shapes import AttentionShape, FeedForwardShape, Part, windows_of
from inference.kernels.weight import Weight
from inference.models.cache import LayerCache
from inference.models.config import ModelConfig
from inference.models.parameters import EMBEDDING, HEAD

# The kernels' name of each weight of a layer, and the checkpoint's.
ATTENTION_WEIGHTS = {
    "norm": "input_layernorm.weight",
    "qkv": "self_attn.qkv_proj.weight",
    "qkv_bias": "self_attn.qkv_proj.bias",
    "query_norm": "self_attn.q_norm.weight",
    "key_norm": "self_attn.k_norm.weight",
    "output": "self_attn.o_proj.weight",
    "output_bias": "self_attn.o_proj.bias",
}
FEED_FORWARD_WEIGHTS = {
    "norm": "post_attention_layernorm.weight",
    "gate_up": "mlp.gate_up_proj.weight",
    "gate_up_bias": "mlp.gate_up_proj.bias",
    "down": "mlp.down_proj.weight",
    "down_bias": "mlp.down_proj.bias",
}


def attention_shapes(
    config: ModelConfig, num_blocks: int, block_size: int, half_cache: bool = False
) -> list[AttentionShape]:
    """The attention layers of a model."""
    heads = (config.num_heads, config.num_kv_heads, config.head_dim)
    return [
        AttentionShape(config.hidden_size, *heads, config.norm_eps, window, num_blocks, block_size, half_cache)
        for window in config.windows
    ]


def layer_halves(
    kernels: ModuleType,
    config: ModelConfig,
    shape: AttentionShape,
    mask_index: int,
    prefix: str,
    weights: Mapping[str, Weight],
    cache: LayerCache,
    frequencies: np.ndarray,
    part: Part | None = None,
) -> list:
    """The two halves of a layer: x + attention(norm(x)), then x + feed_forward(norm(x))."""
    attention, feed_forward = (
        {name: weights[prefix + theirs] for name, theirs in table.items() if prefix + theirs in weights}
        for table in (ATTENTION_WEIGHTS, FEED_FORWARD_WEIGHTS)
    )
    sizes = FeedForwardShape(config.hidden_size, config.intermediate_size, config.norm_eps)
    return [
        kernels.AttentionHalf(shape, frequencies, mask_index, attention, (cache.keys, cache.values), part),
        kernels.FeedForwardHalf(sizes, feed_forward, part),
    ]


class Decoder(nn.Cell):
    """tokens [T] -> what the kernels' OutputHead gives of the tokens named by logits_index [R].

    The inputs are those of `StepBatch`. Every shape is dynamic: one compilation serves all lengths and batch sizes.

    Args:
        kernels: the module that the operations come from, `kernels.stock` or `kernels.native`.
        config: of what this process has of the model.
        part: which part that is; None for all of it.
    """

    def __init__(
        self,
        kernels: ModuleType,
        config: ModelConfig,
        shapes: list[AttentionShape],
        weights: Mapping[str, Weight],
        caches: list[LayerCache],
        part: Part | None = None,
    ):
        super().__init__()
        # One array for all layers, by which the kernels know that the angles are the same.
        frequencies = np.ascontiguousarray(config.rope.inverse_frequencies(config.head_dim), np.float32)
        self.geometry = kernels.StepGeometry(frequencies, shapes)
        self.embedding = kernels.Embedding(weights[EMBEDDING], config.vocab_size, config.hidden_size, part)
        masks = windows_of(shapes)
        halves = []
        for index, (shape, cache) in enumerate(zip(shapes, caches, strict=True)):
            mask = masks.index(shape.window or 0)
            prefix = f"model.layers.{index}."
            halves += layer_halves(kernels, config, shape, mask, prefix, weights, cache, frequencies, part)
        self.layers = kernels.Halves(halves, part)
        head = weights[EMBEDDING if config.tie_embeddings else HEAD]
        self.head = kernels.OutputHead(
            config.vocab_size, config.hidden_size, config.norm_eps, weights["model.norm.weight"], head
        )
        vector, matrix = Tensor(shape=[None], dtype=mstype.int32), Tensor(shape=[None, None], dtype=mstype.int32)
        self.set_inputs(vector, vector, vector, matrix, vector, matrix, vector, vector, vector)

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
    ) -> Tensor:
        geometry = self.geometry(positions, slots, block_tables, query_starts, query_index, token_index)
        x = self.embedding(tokens)  # [T, hidden]
        return self.head(self.layers(x, geometry), logits_index, logit_rows)
