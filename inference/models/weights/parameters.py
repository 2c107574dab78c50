"""Which tensors a checkpoint must hold for a model, and where each goes in the network's parameters.

Knows only names and shapes; never imports mindspore, so that an unsuitable checkpoint is rejected at once.
Hugging Face's names are kept. The network fuses q/k/v and gate/up into one matrix each, because one large product is
faster than two or three small ones; a tensor's place states which rows of the fused parameter it fills. Families store
some tensors differently: fused in another order, rotary pairs as neighbors, matrices transposed, norms minus one. This
module converts them all to one layout, the only one that the kernels know.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial

import numpy as np

from inference.checkpoint.tensor import StoredTensor
from inference.kernels.formats import whole_panels
from inference.models.architecture.config import ModelConfig
from inference.models.architecture.experts import ExpertsConfig, mindformers_down, mindformers_gate_up
from inference.models.architecture.latent import (
    LatentConfig,
    halves_of_pairs,
    key_factors,
    key_projection,
    value_factors,
    value_projection,
)
from inference.models.architecture.t5_config import AnyConfig, T5Config
from inference.models.architecture.tensor_names import MINDFORMERS, Names

# Low-rank additions to rows of a matrix: (first row, up [rows, rank], down [rank, columns]).
Factors = list[tuple[int, np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class TensorPlace:
    """A checkpoint tensor and the rows of the network's parameter that it fills.

    Args:
        name: name of the tensor.
        shape: its shape in the parameter.
        first_row: the parameter's row at which it begins.
        order: for each row, the index of the stored row; None if the stored rows are in the parameter's order.
        transposed: it is stored [in, out].
        offset: number to add to the stored values.
        factor: number to multiply the values by, after the offset.
        normalized: divide each row by its length.
        room: number of rows reserved for it; more than it has if the next tensor must begin a panel.
        take: computes the values from the stored ones, of shape `taken_from`; replaces `order`.
        take_factors: applies `take` to a low-rank addition up down; returns several, as (first row, up, down).
    """

    name: str
    shape: tuple[int, ...]
    parameter: str
    first_row: int = 0
    order: np.ndarray | None = field(default=None, compare=False, repr=False)
    transposed: bool = False
    offset: float = 0.0
    factor: float = 1.0
    normalized: bool = False
    room: int = 0
    take: Callable[[np.ndarray], np.ndarray] | None = None
    take_factors: Callable[[np.ndarray, np.ndarray], Factors] | None = field(default=None, compare=False, repr=False)
    taken_from: tuple[int, ...] = ()

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Its shape in the checkpoint."""
        if self.take is not None:
            return self.taken_from
        return self.shape[::-1] if self.transposed else self.shape

    @property
    def is_arranged(self) -> bool:
        """Whether its rows differ from the stored ones in order or layout."""
        return self.transposed or self.order is not None or self.take is not None

    @property
    def keeps_rows(self) -> bool:
        """Whether each of its rows equals a stored row, in any order."""
        return not (self.transposed or self.take is not None or self.is_computed)

    def arranged(self, stored: np.ndarray) -> np.ndarray:
        """Returns the whole tensor with its rows in the parameter's order."""
        if self.take is not None:
            return self.take(stored)
        rows = stored.T if self.transposed else stored
        return rows if self.order is None else rows[self.order]

    @property
    def takes_factors(self) -> bool:
        """Whether a low-rank addition to the stored tensor is a sum of low-rank additions to the parameter."""
        return not self.is_computed and (self.take is None or self.take_factors is not None)

    def factors(self, up: np.ndarray, down: np.ndarray) -> Factors:
        """Turns an addition up down [out, in] into additions to the parameter, as (first row, up, down)."""
        if self.take_factors is not None:
            return [(self.first_row + row, rows, columns) for row, rows, columns in self.take_factors(up, down)]
        return [(self.first_row, up if self.order is None else up[self.order], down)]

    @property
    def is_computed(self) -> bool:
        """Whether its values differ from the stored ones."""
        return self.normalized or self.offset != 0 or self.factor != 1

    def computed(self, rows: np.ndarray) -> np.ndarray:
        """Computes the values of some rows from the stored ones, float32."""
        if self.normalized:
            rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        rows = rows + self.offset if self.offset else rows
        return (rows * self.factor if self.factor != 1 else rows).astype(np.float32, copy=False)


EMBEDDING = "model.embed_tokens.weight"
POSITIONS = "model.embed_positions.weight"
HEAD = "lm_head.weight"
HEAD_BIAS = "lm_head.bias"
# A layer's router, followed by the gate of its shared expert if it has one.
ROUTER = "router.weight"
LAYER = re.compile(r"model\.layers\.(\d+)\.")
_STACKED = re.compile(r"(.*\.mlp\.experts\.)(gate_up_proj|down_proj)\.weight")
# T5's embedding, and the last part of the name of its bias by distance.
SHARED = "shared.weight"
DISTANCES = "relative_attention_bias.weight"
# Buffers that exporters saved beside the weights; they can be derived from the config.
DERIVED = re.compile(
    r"\.rotary_emb\.(inv_freq|cos_cached|sin_cached)$|\.rotary_pos_emb\.inv_freq$|\.freqs_mgr\.|\.attn\.(masked_)?bias$"
    r"|\.attention\.(masked_)?beta$|(^|\.)(position_ids|causal_mask)$|(^|\.)(rotary_emb|rope)\.(original_)?inv_freq$"
    r"|\.(attention|self_attn)\.(masked_bias|bias|causal_mask)$"
)


def is_derived(name: str) -> bool:
    """Whether a tensor is a buffer that can be derived from the config: masks, positions, rotary frequencies."""
    return DERIVED.search(name) is not None


def hugging_face_name(name: str, names: Names = ()) -> str:
    """Translates a checkpoint's tensor name to Hugging Face's name for Llama.

    Args:
        names: the family's own table.
    """
    for pattern, ours in (*names, *MINDFORMERS):
        name = re.sub(pattern, ours, name)
    return name


def separate_experts(name: str, tensor: StoredTensor) -> dict[str, StoredTensor]:
    """Returns one tensor for each expert's matrix if `tensor` stacks them, [experts, out, in], else the tensor itself.

    A stacked gate and up projection has each expert's gate above its up.
    """
    found = _STACKED.fullmatch(name)
    if found is None or len(tensor.shape) != 3:
        return {name: tensor}
    count, rows, columns = tensor.shape
    parts = ("gate_proj", "up_proj") if found[2] == "gate_up_proj" else (found[2],)
    if rows % len(parts):
        return {name: tensor}
    flat, size = replace(tensor, shape=(count * rows, columns)), rows // len(parts)
    separate = {}
    for index in range(count):
        for half, part in enumerate(parts):
            first = index * rows + half * size
            separate[f"{found[1]}{index}.{part}.weight"] = flat.rows(first, first + size)
    return separate


def is_draft_layer(name: str, config: AnyConfig) -> bool:
    """Whether a tensor belongs to the multi-token prediction layers, which are not run."""
    drafts = getattr(config, "draft_layers", 0)
    found = LAYER.match(name)
    if found is None:
        # MindFormers up to 1.5 stores this part of them outside the layer.
        return drafts > 0 and name.startswith("model.mtp_hidden_fusers.")
    return 0 <= int(found[1]) - config.num_layers < drafts


def tensor_places(config: AnyConfig, stored: Container[str] = ()) -> list[TensorPlace]:
    """Returns the places of all tensors in a checkpoint of this model, in the order of the layers.

    Args:
        stored: the tensor names in a checkpoint, which show whether tensors are separate or fused.
    """
    if isinstance(config, T5Config):
        return list(_t5_places(config, stored))
    places = [TensorPlace(EMBEDDING, (config.vocab_size, config.hidden_size), EMBEDDING)]
    if config.position_rows:
        places.append(TensorPlace(POSITIONS, (config.position_rows, config.hidden_size), POSITIONS))
    for layer in range(config.num_layers):
        places.extend(_layer_places(config, layer, stored))
    places.extend(_norm(config, "model.norm", config.logit_scale))
    if not config.tie_embeddings:
        shape = (config.vocab_size, config.hidden_size)
        places.append(TensorPlace(HEAD, shape, HEAD, normalized=config.storage.normalized_head))
    if config.head_bias:
        places.append(_whole(HEAD_BIAS, (config.vocab_size,)))
    return places


def spare_names(config: AnyConfig) -> set[str]:
    """Returns other tensors that a checkpoint may hold: copies of tied tensors, and unused tensors."""
    names = {HEAD} if config.tie_embeddings else set()
    if isinstance(config, T5Config):
        names |= {f"{stack}.embed_tokens.weight" for stack in ("encoder", "decoder")}
        # The first checkpoints have this tensor, although attention to the source has no bias.
        names.add(f"decoder.block.0.layer.1.EncDecAttention.{DISTANCES}")
    return names


def parameter_shapes(config: AnyConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the network's parameters: the checkpoint's tensors, with fused ones stacked by rows."""
    shapes: dict[str, tuple[int, ...]] = {}
    for place in tensor_places(config):
        rows = place.first_row + max(place.room, place.shape[0])
        shapes[place.parameter] = (rows, *place.shape[1:])
    return shapes


def _layer_places(config: ModelConfig, layer: int, stored: Container[str]) -> Iterator[TensorPlace]:
    prefix = f"model.layers.{layer}."
    if config.pre_norms:
        yield from _norm(config, f"{prefix}input_layernorm")
    if config.latent is None:
        yield from _attention_places(config, f"{prefix}self_attn.", stored)
    else:
        yield from _latent_places(config, config.latent, f"{prefix}self_attn.")
    if config.post_norms:
        yield from _norm(config, f"{prefix}post_self_attn_layernorm")
    if config.pre_norms and not config.parallel:
        yield from _norm(config, f"{prefix}post_attention_layernorm")
    experts = config.experts_of(layer)
    if experts is None:
        yield from _feed_forward_places(config, f"{prefix}mlp.", stored)
    else:
        yield from _experts_places(config.hidden_size, experts, f"{prefix}mlp.", stored)
    if config.post_norms:
        yield from _norm(config, f"{prefix}post_mlp_layernorm")


def _attention_places(config: ModelConfig, attention: str, stored: Container[str]) -> Iterator[TensorPlace]:
    hidden = config.hidden_size
    yield from _qkv_places(config, attention, "weight", (hidden,), stored)
    if config.qkv_bias:
        yield from _qkv_places(config, attention, "bias", (), stored)
    if config.qk_norm:
        yield from _head_norms(config, attention)
    yield _matrix(config, f"{attention}o_proj.weight", (hidden, config.query_size))
    if config.output_bias:
        yield _whole(f"{attention}o_proj.bias", (hidden,))


def _head_norms(config: ModelConfig, attention: str) -> Iterator[TensorPlace]:
    """Yields the norms of queries and keys: of a head, or of all heads of a token."""
    for name, layout, heads in (("q_norm", "queries", config.num_heads), ("k_norm", "keys", config.num_kv_heads)):
        parameter, shape, order = f"{attention}{name}.weight", (config.head_dim,), _head_order(config)
        if config.norms_all_heads:
            sizes = (config.num_heads, config.num_kv_heads, config.head_dim)
            shape = (heads * config.head_dim,)
            order = _order_of_heads(layout, *sizes, config.rotary_size, config.storage.pairs)[1]
        yield TensorPlace(parameter, shape, parameter, order=order, offset=config.storage.norm_offset)


def _latent_places(config: ModelConfig, latent: LatentConfig, attention: str) -> Iterator[TensorPlace]:
    """Yields the places of latent attention.

    Down projections: query (or the compressed query), latent and rotated key in one matrix. Up projections: one matrix
    for each use.
    """
    hidden, heads = config.hidden_size, config.num_heads
    query, whole = heads * latent.query, latent.query_rank == 0
    first = query if whole else latent.query_rank
    query_order = halves_of_pairs(np.arange(query), heads, latent) if latent.interleaved else None
    key_order = halves_of_pairs(np.arange(latent.width), 1, latent) if latent.interleaved else None
    for name, row, rows, order in (
        ("q_proj" if whole else "q_a_proj", 0, first, query_order if whole else None),
        ("kv_a_proj_with_mqa", first, latent.width, key_order),
    ):
        yield TensorPlace(f"{attention}{name}.weight", (rows, hidden), f"{attention}down.weight", row, order)
        if config.qkv_bias and name != "q_proj":
            yield TensorPlace(f"{attention}{name}.bias", (rows,), f"{attention}down.bias", row, order)
    if not whole:
        yield _whole(f"{attention}q_a_layernorm.weight", (latent.query_rank,))
        name = f"{attention}q_b_proj.weight"
        yield TensorPlace(name, (query, latent.query_rank), name, order=query_order)
    yield _whole(f"{attention}kv_a_layernorm.weight", (latent.rank,))
    both = (heads * (latent.nope + latent.value), latent.rank)
    keys, values = heads * whole_panels(latent.rank), heads * whole_panels(latent.value)
    for parameter, shape, take, factors in (
        ("key_up.weight", (keys, latent.nope), key_projection, key_factors),
        ("value_up.weight", (values, latent.rank), value_projection, value_factors),
    ):
        yield TensorPlace(
            f"{attention}kv_b_proj.weight",
            shape,
            attention + parameter,
            take=partial(take, heads=heads, latent=latent),
            take_factors=partial(factors, heads=heads, latent=latent),
            taken_from=both,
        )
    yield _whole(f"{attention}o_proj.weight", (hidden, heads * latent.value))
    if config.output_bias:
        yield _whole(f"{attention}o_proj.bias", (hidden,))


def _feed_forward_places(config: ModelConfig, mlp: str, stored: Container[str]) -> Iterator[TensorPlace]:
    hidden, width = config.hidden_size, config.intermediate_size
    yield from _gate_up_places(config, mlp, "weight", (hidden,), stored)
    if config.mlp_bias:
        yield from _gate_up_places(config, mlp, "bias", (), stored)
    yield _matrix(config, f"{mlp}down_proj.weight", (hidden, width))
    if config.down_bias:
        yield _whole(f"{mlp}down_proj.bias", (hidden,))


def _experts_places(hidden: int, experts: ExpertsConfig, mlp: str, stored: Container[str]) -> Iterator[TensorPlace]:
    """Puts all experts of a layer in one matrix; each begins a panel, so that a kernel can use it in place."""
    count = experts.routing.experts
    yield TensorPlace(f"{mlp}gate.weight", (count, hidden), mlp + ROUTER)
    if experts.shared_gate:
        yield TensorPlace(f"{mlp}shared_expert_gate.weight", (1, hidden), mlp + ROUTER, count)
    if experts.corrected:
        yield _whole(f"{mlp}gate.e_score_correction_bias", (count,))
    if f"{mlp}experts.weight1" in stored:
        yield from _mindformers_experts(f"{mlp}experts.", count, hidden, experts.width)
    else:
        yield from _stacked(mlp, "experts.", [f"experts.{index}." for index in range(count)], hidden, experts.width)
    if experts.shared_width:
        yield from _stacked(mlp, "shared_experts.", ["shared_experts."], hidden, experts.shared_width)


def _mindformers_experts(prefix: str, count: int, hidden: int, width: int) -> Iterator[TensorPlace]:
    """Yields two tensors of all experts, each transposed: [count * hidden, 2 * width] and [count * width, hidden]."""
    shapes = (count * 2 * whole_panels(width), hidden), (count * whole_panels(hidden), width)
    takes = partial(mindformers_gate_up, experts=count), partial(mindformers_down, experts=count)
    stored = (count * hidden, 2 * width), (count * width, hidden)
    names = ("weight1", "gate_up_proj.weight"), ("weight2", "down_proj.weight")
    for (theirs, ours), shape, take, taken_from in zip(names, shapes, takes, stored, strict=True):
        yield TensorPlace(prefix + theirs, shape, prefix + ours, take=take, taken_from=taken_from)


def _stacked(mlp: str, target: str, names: list[str], hidden: int, width: int) -> Iterator[TensorPlace]:
    """Stacks gated feed-forwards by rows: gate, up, gate, up, ... in one parameter, and their down in another."""
    room, down_room = whole_panels(width), whole_panels(hidden)
    gate_up, down = (f"{mlp}{target}{part}.weight" for part in ("gate_up_proj", "down_proj"))
    for index, name in enumerate(names):
        for half, part in enumerate(("gate_proj", "up_proj")):
            first = (2 * index + half) * room
            yield TensorPlace(f"{mlp}{name}{part}.weight", (width, hidden), gate_up, first, room=room)
        yield TensorPlace(f"{mlp}{name}down_proj.weight", (hidden, width), down, index * down_room, room=down_room)


def _t5_places(config: T5Config, stored: Container[str]) -> Iterator[TensorPlace]:
    yield _whole(SHARED, (config.vocab_size, config.hidden_size))
    for stack, layers in (("encoder", config.num_encoder_layers), ("decoder", config.num_layers)):
        for layer in range(layers):
            prefix = f"{stack}.block.{layer}.layer."
            yield from _t5_attention_places(config, f"{prefix}0.", "SelfAttention", stored)
            if layer == 0:
                yield _whole(f"{prefix}0.SelfAttention.{DISTANCES}", (config.num_buckets, config.num_heads))
            if stack == "decoder":
                yield from _t5_attention_places(config, f"{prefix}1.", "EncDecAttention", stored)
            yield from _t5_feed_forward_places(config, f"{prefix}{2 if stack == 'decoder' else 1}.", stored)
        yield _whole(f"{stack}.final_layer_norm.weight", (config.hidden_size,))
    if not config.tie_embeddings:
        yield _whole(HEAD, (config.vocab_size, config.hidden_size))


def _t5_attention_places(config: T5Config, prefix: str, name: str, stored: Container[str]) -> Iterator[TensorPlace]:
    """Fuses queries, keys and values in one matrix; in attention to the source, only keys and values."""
    hidden, inner = config.hidden_size, config.query_size
    yield _whole(f"{prefix}layer_norm.weight", (hidden,))
    for fused in ("qkv",) if name == "SelfAttention" else ("q", "kv"):
        for index, part in enumerate(fused):
            parameter = f"{prefix}{name}.{fused}.weight"
            yield TensorPlace(f"{prefix}{name}.{part}.weight", (inner, hidden), parameter, index * inner)
    yield _either_way(f"{prefix}{name}.", "o", (hidden, inner), stored)


def _t5_feed_forward_places(config: T5Config, prefix: str, stored: Container[str]) -> Iterator[TensorPlace]:
    """Fuses gate and up in one matrix."""
    hidden, width = config.hidden_size, config.intermediate_size
    yield _whole(f"{prefix}layer_norm.weight", (hidden,))
    prefix += "DenseReluDense."
    if config.gated:
        for index in range(2):
            yield TensorPlace(f"{prefix}wi_{index}.weight", (width, hidden), f"{prefix}wi.weight", index * width)
    else:
        yield _either_way(prefix, "wi", (width, hidden), stored)
    yield _either_way(prefix, "wo", (hidden, width), stored)


def _either_way(prefix: str, name: str, shape: tuple[int, int], stored: Container[str]) -> TensorPlace:
    """Returns the place of a matrix that MindFormers' T5 stores [in, out]; its name shows the orientation."""
    parameter, other = f"{prefix}{name}.weight", f"{prefix}transposed_{name}.weight"
    if other in stored:
        return TensorPlace(other, shape, parameter, transposed=True)
    return TensorPlace(parameter, shape, parameter)


def _whole(name: str, shape: tuple[int, ...]) -> TensorPlace:
    return TensorPlace(name, shape, name)


def _matrix(config: ModelConfig, name: str, shape: tuple[int, ...]) -> TensorPlace:
    return TensorPlace(name, shape, name, transposed=config.storage.transposed)


def _norm(config: ModelConfig, name: str, factor: float = 1.0) -> Iterator[TensorPlace]:
    shape = (config.hidden_size,)
    weight, bias = f"{name}.weight", f"{name}.bias"
    yield TensorPlace(weight, shape, weight, offset=config.storage.norm_offset, factor=factor)
    if config.layer_norm and config.norm_bias:
        yield TensorPlace(bias, shape, bias, factor=factor)


def _qkv_places(
    config: ModelConfig, prefix: str, end: str, tail: tuple[int, ...], stored: Container[str]
) -> Iterator[TensorPlace]:
    """Yields the projections of queries, keys and values: separate, or in a fused layout of `tensor_names`."""
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
    """Returns (rows, order) that put the heads of a stored tensor in the order queries, keys, values."""
    share = heads // groups
    by_group = range(0, groups * (share + 2), share + 2)
    # The stored heads in the new order: the rotated ones, then the values.
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
    """Yields the feed-forward's gate and up: separate, or in a fused layout of `tensor_names`."""
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
    """Returns each head element's stored index, so that the kernels can rotate the first R / 2 pairs (i, i + D / 2).

    None if the elements are already stored in this order.
    """
    return _order_of_pairs(config.head_dim, config.rotary_size, config.storage.pairs)


@lru_cache
def _order_of_pairs(size: int, rotated: int, pairs: str) -> np.ndarray | None:
    if pairs == "neighbors" and rotated:
        return np.r_[0:size:2, 1:size:2]
    if pairs == "halves" and 0 < rotated < size:
        middle = (rotated + size) // 2
        return np.r_[0 : rotated // 2, rotated:middle, rotated // 2 : rotated, middle:size]
    return None
