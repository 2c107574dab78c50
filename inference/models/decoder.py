"""The decoder: one block, driven by config fields, for every decoder-only family.

Knows how layers are put together; the arithmetic is the kernels'. Takes and gives tensors, never text.
"""

from __future__ import annotations

from collections.abc import Mapping

from mindspore import Parameter, Tensor, nn, ops
from mindspore import dtype as mstype

from inference.kernels import stock
from inference.models.cache import LayerCache
from inference.models.config import ModelConfig
from inference.models.parameters import EMBEDDING, HEAD


class DecoderLayer(nn.Cell):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, Parameter], index: int, cache: LayerCache, mask: int):
        super().__init__()

        def norm(name: str) -> stock.RMSNorm:
            return stock.RMSNorm(weights[f"model.layers.{index}.{name}.weight"], config.norm_eps)

        def linear(name: str, kind: type) -> nn.Cell:
            prefix = f"model.layers.{index}.{name}"
            return kind(weights[f"{prefix}.weight"], weights.get(f"{prefix}.bias"))

        self.input_norm = norm("input_layernorm")
        self.qkv = linear("self_attn.qkv_proj", stock.Linear)
        self.attention = stock.Attention(
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            cache.keys,
            cache.values,
            mask,
            norm("self_attn.q_norm") if config.qk_norm else None,
            norm("self_attn.k_norm") if config.qk_norm else None,
        )
        self.output = linear("self_attn.o_proj", stock.LinearResidual)
        self.post_norm = norm("post_attention_layernorm")
        self.gate_up = linear("mlp.gate_up_proj", stock.Linear)
        self.activation = stock.SiluMultiply(config.intermediate_size)
        self.down = linear("mlp.down_proj", stock.LinearResidual)

    def construct(self, x: Tensor, geometry: tuple, query_index: Tensor, token_index: Tensor) -> Tensor:
        attended = self.attention(self.qkv(self.input_norm(x)), geometry, query_index, token_index)
        x = self.output(attended, x)
        return self.down(self.activation(self.gate_up(self.post_norm(x))), x)


class Decoder(nn.Cell):
    """tokens [T] -> logits [R, vocabulary], float32, for the tokens named by logits_index [R].

    The inputs are those of `StepBatch`. Every shape is dynamic: one compilation serves all lengths and batch sizes.
    """

    def __init__(
        self, config: ModelConfig, weights: Mapping[str, Parameter], caches: list[LayerCache], block_size: int
    ):
        super().__init__()
        windows = sorted({window or 0 for window in config.windows})
        slots = caches[0].slots
        self.geometry = stock.StepGeometry(
            config.rope.inverse_frequencies(config.head_dim), config.num_kv_heads, slots, block_size, set(windows)
        )
        self.embedding = weights[EMBEDDING]
        self.layers = nn.CellList(
            [
                DecoderLayer(config, weights, index, cache, windows.index(config.windows[index] or 0))
                for index, cache in enumerate(caches)
            ]
        )
        self.norm = stock.RMSNorm(weights["model.norm.weight"], config.norm_eps)
        self.head = stock.Linear(weights[EMBEDDING if config.tie_embeddings else HEAD])
        self.gather = ops.Gather()
        vector, matrix = Tensor(shape=[None], dtype=mstype.int32), Tensor(shape=[None, None], dtype=mstype.int32)
        self.set_inputs(vector, vector, vector, matrix, matrix, vector, vector)

    def construct(
        self,
        tokens: Tensor,
        positions: Tensor,
        slots: Tensor,
        block_tables: Tensor,
        query_index: Tensor,
        token_index: Tensor,
        logits_index: Tensor,
    ) -> Tensor:
        geometry = self.geometry(positions, slots, block_tables, query_index)
        x = self.gather(self.embedding, tokens, 0)  # [T, hidden]
        for layer in self.layers:
            x = layer(x, geometry, query_index, token_index)
        return self.head(self.norm(self.gather(x, logits_index, 0)))
