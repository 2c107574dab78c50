"""The decoder: one block, driven by config fields, for every decoder-only family.

Knows how layers are composed; the kernels do the arithmetic. Takes and returns tensors, never text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType

import numpy as np
from mindspore import Tensor, nn
from mindspore import dtype as mstype

from inference.kernels.formats import Format
from inference.kernels.shapes import AttentionShape, ExpertsShape, FeedForwardShape, LatentShape, Part, windows_of
from inference.kernels.weight import Weight
from inference.models.architecture.config import ModelConfig
from inference.models.architecture.latent import LATENT_NORM_EPS
from inference.models.kv_cache import LayerCache
from inference.models.weights.parameters import EMBEDDING, HEAD, HEAD_BIAS, POSITIONS, ROUTER

# For each weight of a layer: its names in the kernels and in the checkpoint.
ATTENTION_WEIGHTS = {
    "norm": "input_layernorm.weight",
    "norm_bias": "input_layernorm.bias",
    "qkv": "self_attn.qkv_proj.weight",
    "qkv_bias": "self_attn.qkv_proj.bias",
    "query_norm": "self_attn.q_norm.weight",
    "key_norm": "self_attn.k_norm.weight",
    "output": "self_attn.o_proj.weight",
    "output_bias": "self_attn.o_proj.bias",
    "post_norm": "post_self_attn_layernorm.weight",
}
LATENT_WEIGHTS = {
    "norm": "input_layernorm.weight",
    "down": "self_attn.down.weight",
    "down_bias": "self_attn.down.bias",
    "query_norm": "self_attn.q_a_layernorm.weight",
    "query_up": "self_attn.q_b_proj.weight",
    "latent_norm": "self_attn.kv_a_layernorm.weight",
    "key_up": "self_attn.key_up.weight",
    "value_up": "self_attn.value_up.weight",
    "output": "self_attn.o_proj.weight",
    "output_bias": "self_attn.o_proj.bias",
}
FEED_FORWARD_WEIGHTS = {
    "norm": "post_attention_layernorm.weight",
    "norm_bias": "post_attention_layernorm.bias",
    "gate_up": "mlp.gate_up_proj.weight",
    "gate_up_bias": "mlp.gate_up_proj.bias",
    "down": "mlp.down_proj.weight",
    "down_bias": "mlp.down_proj.bias",
    "post_norm": "post_mlp_layernorm.weight",
}
EXPERTS_WEIGHTS = {
    "norm": "post_attention_layernorm.weight",
    "router": f"mlp.{ROUTER}",
    "correction": "mlp.gate.e_score_correction_bias",
    "gate_up": "mlp.experts.gate_up_proj.weight",
    "down": "mlp.experts.down_proj.weight",
    "shared_gate_up": "mlp.shared_experts.gate_up_proj.weight",
    "shared_down": "mlp.shared_experts.down_proj.weight",
}


def attention_shapes(
    config: ModelConfig, num_blocks: int, block_size: int, cache_dtype: str = "float32"
) -> list[AttentionShape] | list[LatentShape]:
    """Returns the shape of each attention layer of a model."""
    if config.latent:
        latent = config.latent
        shape = LatentShape(
            config.hidden_size,
            config.num_heads,
            latent.rank,
            latent.query_rank,
            latent.nope,
            latent.rope,
            latent.value,
            latent.scale,
            config.norm_eps,
            LATENT_NORM_EPS,
            num_blocks,
            block_size,
            cache_dtype,
        )
        return [shape] * config.num_layers
    return [
        AttentionShape(
            config.hidden_size,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            config.norm_eps,
            config.attention_scale,
            window,
            num_blocks,
            block_size,
            cache_dtype,
            config.softcap,
            config.alibi_slopes,
            norms_all_heads=config.norms_all_heads,
            norms_rotated=config.norms_rotated,
        )
        for window in config.windows
    ]


def layer_sublayers(
    kernels: ModuleType,
    config: ModelConfig,
    shape: AttentionShape | LatentShape,
    mask_index: int,
    rotations: Sequence[np.ndarray],
    rotation_index: int,
    layer: int,
    weights: Mapping[str, Weight],
    cache: LayerCache,
    part: Part | None = None,
) -> list:
    """Returns the sublayers of a layer: x + attention(norm(x)), then x + feed_forward(norm(x)) or experts(norm(x)).

    In a parallel layer both read the same norm(x).

    Args:
        mask_index: which of the step's masks the layer uses.
        rotations: the rotation tables that the model's layers share; the layer uses the one at `rotation_index`.
        part: the rank's part of the model; None for the whole model.
    """

    def chosen(table: Mapping[str, str]) -> dict[str, Weight]:
        prefix = f"model.layers.{layer}."
        return {name: weights[prefix + theirs] for name, theirs in table.items() if prefix + theirs in weights}

    shared = (rotations[rotation_index], mask_index, rotation_index)
    if isinstance(shape, LatentShape):
        attention = kernels.LatentAttentionSublayer(shape, *shared, chosen(LATENT_WEIGHTS), cache, part)
    else:
        attention = kernels.AttentionSublayer(shape, *shared, chosen(ATTENTION_WEIGHTS), cache, part)
    experts, hidden, eps = config.experts_of(layer), config.hidden_size, config.norm_eps
    if experts is None:
        sizes = FeedForwardShape(
            hidden, config.intermediate_size, eps, config.activation, config.gated, config.parallel
        )
        feed_forward = kernels.FeedForwardSublayer(sizes, chosen(FEED_FORWARD_WEIGHTS), part)
        return kernels.parallel_sublayers(attention, feed_forward) if config.parallel else [attention, feed_forward]
    widths = (experts.width, experts.shared_width, experts.shared_gate)
    shapes = ExpertsShape(hidden, *widths, eps, experts.routing)
    return [attention, kernels.ExpertsSublayer(shapes, chosen(EXPERTS_WEIGHTS), part)]


def _zero_biases(kernels: ModuleType, config: ModelConfig, weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """Returns a bias of zeros for each LayerNorm of a model that stores none."""
    zeros = Weight(kernels.zeros("norm_bias", (config.hidden_size,), np.float32), Format.FLOAT32)
    return {f"{name.removesuffix('.weight')}.bias": zeros for name in weights if name.endswith("norm.weight")}


class Decoder(nn.Cell):
    """tokens [T] -> the output of the kernels' OutputHead for the tokens in logits_index [R].

    The inputs are those of `StepBatch`. Every shape is dynamic: one compilation serves all lengths and batch sizes.

    Args:
        kernels: the module that provides the operations, `kernels.stock` or `kernels.native`.
        config: the sizes of the part of the model that this process has.
        part: the rank's part of the model; None for the whole model.
    """

    def __init__(
        self,
        kernels: ModuleType,
        config: ModelConfig,
        shapes: Sequence[AttentionShape | LatentShape],
        weights: Mapping[str, Weight],
        caches: list[LayerCache],
        part: Part | None = None,
    ):
        super().__init__()
        if config.layer_norm and not config.norm_bias:
            weights = {**weights, **_zero_biases(kernels, config, weights)}
        # Layers with the same angles share one array; the kernels recognize them by its identity.
        ropes = list(dict.fromkeys(config.rope_of(layer) for layer in range(config.num_layers)))
        rotations = [config.rotation(rope) for rope in ropes]
        self.geometry = kernels.StepGeometry(rotations, shapes)
        self.embedding = kernels.Embedding(weights[EMBEDDING], config.vocab_size, config.hidden_size, part)
        self.embedding_scale = config.embedding_scale
        self.has_positions = config.position_rows is not None
        if config.position_rows is not None:
            self.position_embedding = kernels.Embedding(weights[POSITIONS], config.position_rows, config.hidden_size)
        masks = windows_of(shapes)
        sublayers = []
        for index, (shape, cache) in enumerate(zip(shapes, caches, strict=True)):
            mask = masks.index(shape.window or 0)
            rotation = ropes.index(config.rope_of(index))
            sublayers += layer_sublayers(kernels, config, shape, mask, rotations, rotation, index, weights, cache, part)
        self.layers = kernels.Sublayers(sublayers, part)
        head = weights[EMBEDDING if config.tie_embeddings else HEAD]
        self.head = kernels.OutputHead(
            config.vocab_size,
            config.hidden_size,
            config.norm_eps,
            weights["model.norm.weight"],
            head,
            weights.get("model.norm.bias"),
            config.logit_softcap,
            weights.get(HEAD_BIAS),
        )
        vector, matrix = Tensor(shape=[None], dtype=mstype.int32), Tensor(shape=[None, None], dtype=mstype.int32)
        self.is_adapted = any(weight.additions for weight in weights.values())
        adapters = (vector,) if self.is_adapted else ()
        self.inputs = (vector, vector, vector, matrix, vector, matrix, vector, vector, vector, *adapters)
        self.set_inputs(*self.inputs)

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
        adapters: Tensor | None = None,
    ) -> Tensor:
        given = (positions, slots, block_tables, query_starts, query_index, token_index)
        states, geometry = self.states(tokens, *given, adapters)
        return self.head(states, logits_index, logit_rows, geometry)

    def states(
        self,
        tokens: Tensor,
        positions: Tensor,
        slots: Tensor,
        block_tables: Tensor,
        query_starts: Tensor,
        query_index: Tensor,
        token_index: Tensor,
        adapters: Tensor | None,
    ) -> tuple[Tensor, tuple]:
        """Returns the states before the final norm [T, hidden], and the step's geometry."""
        geometry = self.geometry(positions, slots, block_tables, query_starts, query_index, token_index)
        if self.is_adapted:
            geometry = (*geometry, adapters)
        x = self.embedding(tokens)  # [T, hidden]
        if self.embedding_scale != 1:
            x = x * self.embedding_scale
        if self.has_positions:
            x = x + self.position_embedding(positions)
        return self.layers(x, geometry), geometry


class HiddenStates(nn.Cell):
    """tokens [T] -> the states before the final norm [T, hidden]; takes the same inputs as the decoder.

    Args:
        decoder: the network whose layers compute them.
    """

    def __init__(self, decoder: Decoder):
        super().__init__()
        self.decoder = decoder
        self.set_inputs(*decoder.inputs)

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
        adapters: Tensor | None = None,
    ) -> Tensor:
        given = (positions, slots, block_tables, query_starts, query_index, token_index)
        states, _ = self.decoder.states(tokens, *given, adapters)
        return states
