"""Which tensors a checkpoint must hold for a model, and where each goes in the network's parameters.

Knows names and shapes only; never imports mindspore, so that a checkpoint that does not fit is refused at once.
Hugging Face's names are kept. The network fuses q/k/v and gate/up into one matrix each, because one large product is
faster than two or three small ones; a tensor's place says which rows of the fused parameter it fills. What families
store in another way (fused in another order, rotary pairs as neighbours, matrices the other way round, norms less one)
is brought into the one order here, so that the kernels know one layout.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from inference.models.config import ModelConfig
from inference.models.names import MINDFORMERS, Names


@dataclass(frozen=True)
class TensorPlace:
    """One checkpoint tensor, and the rows of the network's parameter that it fills.

    Args:
        name: of the tensor.
        shape: that it has in the parameter.
        first_row: of the parameter's rows.
        order: of each row, the stored one that it is; None where they lie in the parameter's order.
        transposed: it is stored [in, out].
        offset: what is added to the stored values.
        normalised: each row is divided by its length.
    """

    name: str
    shape: tuple[int, ...]
    parameter: str
    first_row: int = 0
    order: np.ndarray | None = field(default=None, compare=False, repr=False)
    transposed: bool = False
    offset: float = 0.0
    normalised: bool = False

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape that it has in the checkpoint."""
        return self.shape[::-1] if self.transposed else self.shape

    @property
    def is_arranged(self) -> bool:
        """Whether its rows are not simply those that are stored."""
        return self.transposed or self.order is not None

    def arranged(self, stored: np.ndarray) -> np.ndarray:
        """The whole tensor, with its rows in the parameter's order."""
        rows = stored.T if self.transposed else stored
        return rows if self.order is None else rows[self.order]

    @property
    def is_computed(self) -> bool:
        """Whether its values are not simply those that are stored."""
        return self.normalised or self.offset != 0

    def computed(self, rows: np.ndarray) -> np.ndarray:
        """What becomes of some of its rows, float32."""
        if self.normalised:
            rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        return (rows + self.offset if self.offset else rows).astype(np.float32, copy=False)


EMBEDDING = "model.embed_tokens.weight"
POSITIONS = "model.embed_positions.weight"
HEAD = "lm_head.weight"
# Buffers that exporters saved beside the weights; they follow from the config.
DERIVED = re.compile(
    r"\.rotary_emb\.(inv_freq|cos_cached|sin_cached)$|\.rotary_pos_emb\.inv_freq$|\.freqs_mgr\.|\.attn\.(masked_)?bias$"
    r"|\.attention\.(masked_)?beta$"
)


def hugging_face_name(name: str, names: Names = ()) -> str:
    """A checkpoint's tensor name in Hugging Face's spelling for Llama.

    Args:
        names: the family's own table.
    """
    for pattern, ours in (*names, *MINDFORMERS):
        name = re.sub(pattern, ours, name)
    return name


def tensor_places(config: ModelConfig, stored: Container[str] = ()) -> list[TensorPlace]:
    """Every tensor that a checkpoint of this model holds, in the order of the layers.

    Args:
        stored: names of a checkpoint, which decide between tensors that are apart and fused ones.
    """
    places = [TensorPlace(EMBEDDING, (config.vocab_size, config.hidden_size), EMBEDDING)]
    if config.position_rows:
        places.append(TensorPlace(POSITIONS, (config.position_rows, config.hidden_size), POSITIONS))
    for layer in range(config.num_layers):
        places.extend(_layer_places(config, f"model.layers.{layer}.", stored))
    places.extend(_norm(config, "model.norm"))
    if not config.tie_embeddings:
        shape = (config.vocab_size, config.hidden_size)
        places.append(TensorPlace(HEAD, shape, HEAD, normalised=config.storage.normalised_head))
    return places


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the network's parameters: the checkpoint's tensors, those that are fused stacked by rows."""
    shapes: dict[str, tuple[int, ...]] = {}
    for place in tensor_places(config):
        rows = place.first_row + place.shape[0]
        shapes[place.parameter] = (rows, *place.shape[1:])
    return shapes


def _layer_places(config: ModelConfig, prefix: str, stored: Container[str]) -> Iterator[TensorPlace]:
    hidden, width = config.hidden_size, config.intermediate_size
    attention, mlp = f"{prefix}self_attn.", f"{prefix}mlp."
    yield from _norm(config, f"{prefix}input_layernorm")
    yield from _qkv_places(config, attention, "weight", (hidden,), stored)
    if config.qkv_bias:
        yield from _qkv_places(config, attention, "bias", (), stored)
    if config.qk_norm:
        order = _head_order(config)
        for name in ("q_norm", "k_norm"):
            parameter = f"{attention}{name}.weight"
            shape = (config.head_dim,)
            yield TensorPlace(parameter, shape, parameter, order=order, offset=config.storage.norm_offset)
    yield _matrix(config, f"{attention}o_proj.weight", (hidden, config.query_size))
    if config.output_bias:
        yield _whole(f"{attention}o_proj.bias", (hidden,))
    if config.post_norms:
        yield from _norm(config, f"{prefix}post_self_attn_layernorm")
    yield from _norm(config, f"{prefix}post_attention_layernorm")
    yield from _gate_up_places(config, mlp, "weight", (hidden,), stored)
    if config.mlp_bias:
        yield from _gate_up_places(config, mlp, "bias", (), stored)
    yield _matrix(config, f"{mlp}down_proj.weight", (hidden, width))
    if config.down_bias:
        yield _whole(f"{mlp}down_proj.bias", (hidden,))
    if config.post_norms:
        yield from _norm(config, f"{prefix}post_mlp_layernorm")


def _whole(name: str, shape: tuple[int, ...]) -> TensorPlace:
    return TensorPlace(name, shape, name)


def _matrix(config: ModelConfig, name: str, shape: tuple[int, ...]) -> TensorPlace:
    return TensorPlace(name, shape, name, transposed=config.storage.transposed)


def _norm(config: ModelConfig, name: str) -> Iterator[TensorPlace]:
    shape = (config.hidden_size,)
    yield TensorPlace(f"{name}.weight", shape, f"{name}.weight", offset=config.storage.norm_offset)
    if config.layer_norm:
        yield _whole(f"{name}.bias", shape)


def _qkv_places(
    config: ModelConfig, prefix: str, end: str, tail: tuple[int, ...], stored: Container[str]
) -> Iterator[TensorPlace]:
    """The projections of queries, keys and values: apart, or in one of the fused layouts of `names`."""
    parameter = f"{prefix}qkv_proj.{end}"

    def place(name: str, layout: str, first: int, transposed: bool = False) -> TensorPlace:
        sizes = (config.num_heads, config.num_kv_heads, config.head_dim)
        count, order = _order_of_heads(layout, *sizes, config.rotary_size, config.storage.pairs)
        return TensorPlace(f"{prefix}{name}.{end}", (count, *tail), parameter, first, order, transposed)

    for name, layout in (("qkv_proj", "stacked"), ("grouped_qkv", "grouped")):
        if f"{prefix}{name}.{end}" in stored:
            yield place(name, layout, 0, config.storage.transposed and bool(tail))
            return
    yield place("q_proj", "queries", 0)
    if f"{prefix}grouped_kv.{end}" in stored:
        yield place("grouped_kv", "grouped keys and values", config.query_size)
        return
    yield place("k_proj", "keys", config.query_size)
    yield place("v_proj", "values", config.query_size + config.kv_size)


@lru_cache
def _order_of_heads(
    layout: str, heads: int, groups: int, size: int, rotated: int, pairs: str
) -> tuple[int, np.ndarray | None]:
    """(rows, order) of a stored tensor of heads, whose rows are to be queries, keys and values one after the other."""
    share = heads // groups
    by_group = range(0, groups * (share + 2), share + 2)
    # The stored heads in the order that they are to have, those that are rotated before the values.
    turned, values = {
        "queries": (range(heads), range(0)),
        "keys": (range(groups), range(0)),
        "values": (range(0), range(groups)),
        "grouped keys and values": (range(0, 2 * groups, 2), range(1, 2 * groups, 2)),
        "stacked": (range(heads + groups), range(heads + groups, heads + 2 * groups)),
        "grouped": (
            [start + i for start in by_group for i in range(share)] + [start + share for start in by_group],
            [start + share + 1 for start in by_group],
        ),
    }[layout]
    within, plain = _order_of_pairs(size, rotated, pairs), np.arange(size)
    rows = [np.array(turned, int)[:, None] * size + (plain if within is None else within)]
    rows.append(np.array(values, int)[:, None] * size + plain)
    order = np.concatenate(rows).reshape(-1)
    return len(order), None if np.array_equal(order, np.arange(len(order))) else order


def _gate_up_places(
    config: ModelConfig, prefix: str, end: str, tail: tuple[int, ...], stored: Container[str]
) -> Iterator[TensorPlace]:
    """The feed-forward's gate and up: apart, or in one of the fused layouts of `names`."""
    parameter, width = f"{prefix}gate_up_proj.{end}", config.intermediate_size
    transposed = config.storage.transposed and bool(tail)
    if not config.gated:
        yield TensorPlace(f"{prefix}up_proj.{end}", (width, *tail), parameter, transposed=transposed)
        return
    if f"{prefix}gate_up_proj.{end}" in stored:
        yield TensorPlace(parameter, (2 * width, *tail), parameter, transposed=transposed)
        return
    yield TensorPlace(f"{prefix}gate_proj.{end}", (width, *tail), parameter, 0, transposed=transposed)
    yield TensorPlace(f"{prefix}up_proj.{end}", (width, *tail), parameter, width, transposed=transposed)


def _head_order(config: ModelConfig) -> np.ndarray | None:
    """Of each element of a head, the stored one, so that the kernels rotate pairs (i, i + D / 2), the first R / 2.

    None where it is stored so.
    """
    return _order_of_pairs(config.head_dim, config.rotary_size, config.storage.pairs)


@lru_cache
def _order_of_pairs(size: int, rotated: int, pairs: str) -> np.ndarray | None:
    if pairs == "neighbours" and rotated:
        return np.r_[0:size:2, 1:size:2]
    if pairs == "halves" and 0 < rotated < size:
        middle = (rotated + size) // 2
        return np.r_[0 : rotated // 2, rotated:middle, rotated // 2 : rotated, middle:size]
    return None
