"""The part of each tensor that a rank holds if several ranks share a model (tensor parallelism).

The split is Megatron-LM's (Shoeybi et al. 2019, section 3). The first matrix of each sublayer is split by rows, so that
a rank has whole heads, or a part of the feed-forward's width. The second matrix is split by columns, so that the ranks'
results are summed. Embedding and head are split by tokens of the vocabulary. A rank's part of a model is a smaller
model: `Shard.config` is its config, and everything that depends on sizes (shapes, memory, cache) is derived from that.
Never imports mindspore.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from inference.checkpoint.tensor import StoredTensor
from inference.errors import CheckpointError, ConfigError
from inference.kernels.formats import GROUP, PAIR, PANEL, Format, WeightFormat, whole_panels
from inference.kernels.weight import Addition
from inference.models.architecture.config import ModelConfig
from inference.models.architecture.experts import ExpertsConfig
from inference.models.architecture.latent import LatentConfig
from inference.models.architecture.t5_config import AnyConfig
from inference.models.weights.parameters import TensorPlace, parameter_shapes, tensor_places

# The type of tensors that `convert` packed.
PACKED = "uint8"
Pairs = list[tuple[StoredTensor, TensorPlace]]
Bounds = tuple[int, int]
# (config, rank, number of ranks) -> first and last + 1 of the rank's part of an axis.
Extent = Callable[[AnyConfig, int, int], Bounds]


@dataclass(frozen=True)
class Split:
    """How a tensor is split among ranks.

    Args:
        axis: the axis that is split; None if every rank has the whole tensor.
        extent: the unit of the axis, a key of `EXTENTS`.
        first_only: only the first rank has it, because the ranks' results are summed.
    """

    axis: int | None = None
    extent: str = ""
    first_only: bool = False


REPLICATED, FIRST_ONLY = Split(), Split(first_only=True)
# Keys are the last part of a tensor's name, with * for an expert's number. A tensor that is not in this table cannot be
# split. Anything that a sublayer does with its result before adding it to the stream (a norm) must follow the ranks'
# sum.
SPLITS = {
    "model.embed_tokens.weight": Split(0, "vocabulary"),
    "model.embed_positions.weight": REPLICATED,
    "lm_head.weight": Split(0, "vocabulary"),
    "lm_head.bias": Split(0, "vocabulary"),
    "model.norm.weight": REPLICATED,
    "model.norm.bias": REPLICATED,
    "input_layernorm.weight": REPLICATED,
    "input_layernorm.bias": REPLICATED,
    "post_self_attn_layernorm.weight": REPLICATED,
    "post_attention_layernorm.weight": REPLICATED,
    "post_attention_layernorm.bias": REPLICATED,
    "post_mlp_layernorm.weight": REPLICATED,
    "self_attn.q_norm.weight": REPLICATED,
    "self_attn.k_norm.weight": REPLICATED,
    "self_attn.q_proj.weight": Split(0, "queries"),
    "self_attn.q_proj.bias": Split(0, "queries"),
    "self_attn.k_proj.weight": Split(0, "kv_heads"),
    "self_attn.k_proj.bias": Split(0, "kv_heads"),
    "self_attn.v_proj.weight": Split(0, "kv_heads"),
    "self_attn.v_proj.bias": Split(0, "kv_heads"),
    "self_attn.o_proj.weight": Split(1, "answers"),
    "self_attn.o_proj.bias": FIRST_ONLY,
    "mlp.gate_proj.weight": Split(0, "width"),
    "mlp.gate_proj.bias": Split(0, "width"),
    "mlp.up_proj.weight": Split(0, "width"),
    "mlp.up_proj.bias": Split(0, "width"),
    "mlp.down_proj.weight": Split(1, "width"),
    "mlp.down_proj.bias": FIRST_ONLY,
    # All ranks choose the same experts, and each rank has a part of every expert's width.
    "mlp.gate.weight": REPLICATED,
    "mlp.gate.e_score_correction_bias": REPLICATED,
    "mlp.shared_expert_gate.weight": REPLICATED,
    "mlp.experts.*.gate_proj.weight": Split(0, "expert_width"),
    "mlp.experts.*.up_proj.weight": Split(0, "expert_width"),
    "mlp.experts.*.down_proj.weight": Split(1, "expert_width"),
    "mlp.shared_experts.gate_proj.weight": Split(0, "shared_width"),
    "mlp.shared_experts.up_proj.weight": Split(0, "shared_width"),
    "mlp.shared_experts.down_proj.weight": Split(1, "shared_width"),
    # Latent attention: every rank has the whole latent, and so the whole cache. The last two are made from kv_b_proj.
    "self_attn.q_a_proj.weight": REPLICATED,
    "self_attn.q_a_proj.bias": REPLICATED,
    "self_attn.q_a_layernorm.weight": REPLICATED,
    "self_attn.q_b_proj.weight": Split(0, "queries"),
    "self_attn.kv_a_proj_with_mqa.weight": REPLICATED,
    "self_attn.kv_a_proj_with_mqa.bias": REPLICATED,
    "self_attn.kv_a_layernorm.weight": REPLICATED,
    "self_attn.key_up.weight": Split(0, "latent_keys"),
    "self_attn.value_up.weight": Split(0, "latent_values"),
    # T5: its keys and values have as many heads as its queries.
    "shared.weight": Split(0, "vocabulary"),
    "layer_norm.weight": REPLICATED,
    "Attention.q.weight": Split(0, "queries"),
    "Attention.k.weight": Split(0, "queries"),
    "Attention.v.weight": Split(0, "queries"),
    "Attention.o.weight": Split(1, "answers"),
    "relative_attention_bias.weight": Split(1, "heads"),
    "DenseReluDense.wi.weight": Split(0, "width"),
    "DenseReluDense.wi_0.weight": Split(0, "width"),
    "DenseReluDense.wi_1.weight": Split(0, "width"),
    "DenseReluDense.wo.weight": Split(1, "width"),
}
_EXPERT = re.compile(r"\.experts\.\d+\.")


def _vocabulary(config: AnyConfig, rank: int, size: int) -> Bounds:
    """Splits the vocabulary by whole panels, so that packed weights can be split too."""
    return _even(config.vocab_size, PANEL, rank, size)


def _by_head(elements: Callable[[AnyConfig], int]) -> Extent:
    """Splits an axis with `elements` for each query head."""

    def bounds(config: AnyConfig, rank: int, size: int) -> Bounds:
        count = config.num_heads // size * elements(config)
        return rank * count, (rank + 1) * count

    return bounds


def _latent(config: AnyConfig) -> LatentConfig | None:
    return config.latent if isinstance(config, ModelConfig) else None


def _experts(config: AnyConfig) -> ExpertsConfig | None:
    return config.experts if isinstance(config, ModelConfig) else None


def _query(config: AnyConfig) -> int:
    latent = _latent(config)
    return latent.query if latent else config.head_dim


def _answer(config: AnyConfig) -> int:
    latent = _latent(config)
    return latent.value if latent else config.head_dim


def _latent_key(config: AnyConfig) -> int:
    latent = _latent(config)
    return whole_panels(latent.rank) if latent else 0


def _latent_value(config: AnyConfig) -> int:
    latent = _latent(config)
    return whole_panels(latent.value) if latent else 0


def _kv_heads(config: AnyConfig, rank: int, size: int) -> Bounds:
    """Splits key/value heads; if there are fewer heads than ranks, neighboring ranks share a head."""
    heads = config.num_kv_heads if isinstance(config, ModelConfig) else config.num_heads
    count = max(1, heads // size)
    first = rank * heads // size
    return first * config.head_dim, (first + count) * config.head_dim


def _columns(width: Callable[[AnyConfig], int]) -> Extent:
    """Splits a width by whole groups of a quantized format, if there are enough of them."""

    def bounds(config: AnyConfig, rank: int, size: int) -> Bounds:
        count = width(config)
        return _even(count, GROUP if -(-count // GROUP) >= size else 1, rank, size)

    return bounds


def _width(config: AnyConfig) -> int:
    return config.intermediate_size


def _expert_width(config: AnyConfig) -> int:
    experts = _experts(config)
    return experts.width if experts else 0


def _shared_width(config: AnyConfig) -> int:
    experts = _experts(config)
    return experts.shared_width if experts else 0


def _even(count: int, unit: int, rank: int, size: int) -> Bounds:
    units = -(-count // unit)
    return min(count, units * rank // size * unit), min(count, units * (rank + 1) // size * unit)


EXTENTS: dict[str, Extent] = {
    "vocabulary": _vocabulary,
    "heads": _by_head(lambda config: 1),
    "queries": _by_head(_query),
    "answers": _by_head(_answer),
    "kv_heads": _kv_heads,
    "latent_keys": _by_head(_latent_key),
    "latent_values": _by_head(_latent_value),
    "width": _columns(_width),
    "expert_width": _columns(_expert_width),
    "shared_width": _columns(_shared_width),
}


def split_of(name: str) -> Split:
    """Returns how a checkpoint's tensor is split among ranks.

    Raises:
        KeyError: the tensor is not in the table.
    """
    numberless = _EXPERT.sub(".experts.*.", name)
    for ending, split in SPLITS.items():
        if numberless.endswith(ending):
            return split
    raise KeyError(f"no rule says how ranks share {name}: add one to {__name__}.SPLITS")


def _split_name(place: TensorPlace) -> str:
    """Returns the name to pass to `split_of`: the tensor's, or the parameter's if several are made from one tensor."""
    return place.name if place.take is None else place.parameter


def _has_split(place: TensorPlace) -> bool:
    return _EXPERT.sub(".experts.*.", _split_name(place)).endswith(tuple(SPLITS))


@dataclass(frozen=True)
class Piece:
    """A checkpoint's tensor, and a rank's part of it.

    Args:
        whole: its place in one process's network.
        own: the part's place in the rank's network.
        bounds: first and last + 1 along each axis.
    """

    whole: TensorPlace
    own: TensorPlace
    bounds: tuple[Bounds, ...]

    @property
    def rows(self) -> Bounds:
        """First and last + 1 of its rows in the whole parameter."""
        first = self.whole.first_row
        return first + self.bounds[0][0], first + self.bounds[0][1]

    def factors(self, up: np.ndarray, down: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the rank's part of an addition up down [out, in] to the whole tensor.

        Rows are in the parameter's order, or in the stored order if parameters are made from them head by head.
        """
        if self.whole.take is not None:
            return up[slice(*self.stored_heads)], down
        rows, columns = self.bounds
        return (up if self.whole.order is None else up[self.whole.order])[slice(*rows)], down[:, slice(*columns)]

    @property
    def stored_heads(self) -> Bounds:
        """First and last + 1 of its heads' rows in a stored tensor from which parameters are made head by head."""
        count = self.own.taken_from[0]
        begin = self.bounds[0][0] // self.own.shape[0] * count
        return begin, begin + count


@dataclass(frozen=True)
class Shard:
    """The part of a model that rank `rank` of `size` ranks has.

    `check_split` checks beforehand whether the model can be split.
    """

    model: AnyConfig
    rank: int = 0
    size: int = 1

    @property
    def is_whole(self) -> bool:
        return self.size == 1

    @property
    def is_first(self) -> bool:
        """Whether this rank adds the terms that must be added only once: residuals and the biases of sums."""
        return self.rank == 0

    def bounds(self, extent: str) -> Bounds:
        """Returns first and last + 1 of this rank's part of an axis."""
        return EXTENTS[extent](self.model, self.rank, self.size)

    def _size(self, extent: str) -> int:
        begin, end = self.bounds(extent)
        return end - begin

    @cached_property
    def config(self) -> AnyConfig:
        """The config of the rank's part, as a smaller model."""
        model = self.model
        if self.is_whole:
            return model
        vocabulary, heads, width = self._size("vocabulary"), self._size("heads"), self._size("width")
        if not isinstance(model, ModelConfig):
            return replace(model, vocab_size=vocabulary, num_heads=heads, intermediate_size=width)
        experts, slopes = model.experts, model.alibi_slopes
        if experts is not None:
            experts = replace(experts, width=self._size("expert_width"), shared_width=self._size("shared_width"))
        return replace(
            model,
            vocab_size=vocabulary,
            num_heads=heads,
            num_kv_heads=self._size("kv_heads") // model.head_dim,
            intermediate_size=width,
            alibi_slopes=None if slopes is None else slopes[slice(*self.bounds("heads"))],
            experts=experts,
        )

    @property
    def first_token(self) -> int:
        """The first token of its part of the vocabulary."""
        return 0 if self.is_whole else self.bounds("vocabulary")[0]

    def pieces(self) -> Iterator[Piece]:
        """Yields the rank's parts of tensors, in the order of a checkpoint without fused tensors."""
        for whole, own in zip(tensor_places(self.model), tensor_places(self.config), strict=True):
            split = split_of(_split_name(whole))
            if split.first_only and not self.is_first:
                continue
            bounds = [(0, length) for length in whole.shape]
            if split.axis is not None:
                bounds[split.axis] = self.bounds(split.extent)
            assert own.shape == tuple(end - begin for begin, end in bounds), whole.name
            yield Piece(whole, own, tuple(bounds))

    @cached_property
    def _by_parameter(self) -> dict[str, dict[str, Piece]]:
        """The pieces of each parameter, by the names of their tensors."""
        found: dict[str, dict[str, Piece]] = {}
        for piece in self.pieces():
            found.setdefault(piece.own.parameter, {})[piece.whole.name] = piece
        return found

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of the parameters of the rank's network."""
        if self.is_whole:
            return parameter_shapes(self.model)
        return {name: shape for name, shape in parameter_shapes(self.config).items() if name in self._by_parameter}

    def keep(self, pairs: Pairs) -> Pairs:
        """Returns the tensors of a rank's own checkpoint that the rank needs."""
        return [pair for pair in pairs if pair[1].parameter in self._by_parameter]

    def cut(self, pairs: Pairs) -> Pairs:
        """Returns the rank's parts of stored tensors from an unsplit checkpoint."""
        if self.is_whole:
            return pairs
        return [part for tensor, place in pairs for part in self._parts(tensor, place)]

    def _parts(self, tensor: StoredTensor, place: TensorPlace) -> Pairs:
        """Returns the rank's parts of a stored tensor, which may be fused, in as few contiguous runs as possible."""
        pieces = self._by_parameter.get(place.parameter, {})
        if place.take is not None:
            if place.name in pieces:
                return [_cut_heads(tensor, pieces[place.name])]
            return list(_cut_experts(tensor, place, list(pieces.values())))
        first, last = place.first_row, place.first_row + place.shape[0]
        # A single piece, unless the tensor is fused.
        own = [pieces[place.name]] if place.name in pieces else list(pieces.values())
        own = [piece for piece in own if first <= piece.rows[0] and piece.rows[1] <= last]
        stored = np.arange(place.shape[0]) if place.order is None else place.order
        rows = [stored[piece.rows[0] - first : piece.rows[1] - first] for piece in own]
        if len(own) > 1 and np.ptp(together := np.concatenate(rows)) + 1 == len(together):
            # The pieces' rows form one stored run, in some order, and the pieces are adjacent in the rank's parameter
            # too.
            own, rows = own[:1], [together]
        return [_cut_rows(tensor, place, *part) for part in zip(own, rows, strict=True)]

    def cut_packed(self, pairs: Pairs, formats: dict[str, Format], path: Path) -> Pairs:
        """Returns the rank's parts of parameters that `convert` packed.

        Raises:
            CheckpointError: a part begins or ends inside a packed unit.
        """
        stored = {place.name: tensor for tensor, place in pairs}
        parts: Pairs = []
        for name, pieces in self._by_parameter.items():
            tensor = stored[name]
            if all(piece.own == piece.whole for piece in pieces.values()):
                parts.append((tensor, TensorPlace(name, tensor.shape, name)))
                continue
            for piece in pieces.values():
                packed = tensor.dtype == PACKED
                part = _cut_packed(tensor, piece, formats[name]) if packed else tensor.rows(*piece.rows)
                if part is None:
                    raise CheckpointError(
                        f"{path}: packed {name} cannot be cut for {self.size} ranks",
                        f"convert the original checkpoint with --model_parallel {self.size}",
                    )
                # Packed rows are already in the parameter's order, and their values are final.
                parts.append((part, TensorPlace(name, part.shape, name, piece.own.first_row)))
        return parts

    def cut_values(self, parameter: str, values: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
        """Yields the rank's parts of a whole parameter's values, and the first row of each in its own parameter."""
        if self.is_whole:
            yield values, 0
            return
        for piece in self._by_parameter.get(parameter, {}).values():
            window = (slice(*piece.rows), *(slice(*bounds) for bounds in piece.bounds[1:]))
            yield values[window], piece.own.first_row

    def cut_addition(self, parameter: str, addition: Addition) -> Iterator[Addition]:
        """Yields the rank's parts of an adapter's addition to a whole parameter: rows of `up`, or columns of `down`.

        For a matrix split by columns, the sum over the ranks adds up the parts of the addition with those of the
        matrix.
        """
        if self.is_whole:
            yield addition
            return
        first, last = addition.first_row, addition.first_row + len(addition.up)
        for piece in self._by_parameter.get(parameter, {}).values():
            begin, end = max(first, piece.rows[0]), min(last, piece.rows[1])
            if begin < end:
                row, columns = piece.own.first_row + begin - piece.rows[0], slice(*piece.bounds[1])
                yield Addition(
                    addition.adapter, row, addition.down[:, columns], addition.up[begin - first : end - first]
                )


def _cut_rows(
    tensor: StoredTensor, place: TensorPlace, piece: Piece, rows: np.ndarray
) -> tuple[StoredTensor, TensorPlace]:
    """Cuts these stored rows and the piece's columns; the piece states their first row in the rank's parameter."""
    begin, end = int(rows.min()), int(rows.max()) + 1
    is_in_order = np.array_equal(rows, np.arange(begin, end))
    bounds = ((begin, end), *piece.bounds[1:])
    own = replace(
        place,
        shape=(len(rows), *piece.own.shape[1:]),
        first_row=piece.own.first_row,
        order=None if is_in_order else rows - begin,
        room=piece.own.room,
    )
    return _cut(tensor, bounds[::-1] if place.transposed else bounds), own


def _cut_heads(tensor: StoredTensor, piece: Piece) -> tuple[StoredTensor, TensorPlace]:
    """Cuts the rows of the piece's heads from a tensor from which parameters are made head by head."""
    return _cut(tensor, (piece.stored_heads,)), piece.own


def _cut_experts(
    tensor: StoredTensor, place: TensorPlace, pieces: list[Piece]
) -> Iterator[tuple[StoredTensor, TensorPlace]]:
    """Cuts the rank's parts of MindFormers' tensor of all experts: stacked by rows, each [in, out], gate beside up."""
    height, width = pieces[0].whole.shape
    beside = place.taken_from[1] // height
    for index, piece in enumerate(pieces):
        row, column = index // beside * width, index % beside * height
        columns, rows = piece.bounds
        window = ((row + rows[0], row + rows[1]), (column + columns[0], column + columns[1]))
        yield _cut(tensor, window), replace(piece.own, transposed=True)


def _cut(tensor: StoredTensor, bounds: tuple[Bounds, ...]) -> StoredTensor:
    if bounds[0] != (0, tensor.shape[0]):
        tensor = replace(tensor.rows(*bounds[0]), is_part=True)
    if len(bounds) > 1 and bounds[1] != (0, tensor.shape[1]):
        tensor = tensor.columns(*bounds[1])
    return tensor


def _cut_packed(tensor: StoredTensor, piece: Piece, form: Format) -> StoredTensor | None:
    """Cuts whole panels of rows and whole pairs of groups of columns; None if the part is not aligned to them."""
    (first, last), (begin, end) = piece.bounds
    height, width = piece.whole.shape
    first, last, top = first + piece.whole.first_row, last + piece.whole.first_row, height + piece.whole.first_row
    unit = PAIR if form.quantized else 1
    # The last panel may be incomplete if no other tensor shares it.
    rows_fit = first % PANEL == 0 and piece.own.first_row % PANEL == 0
    rows_fit &= last % PANEL == 0 or (last == top and (piece.whole.room > 0 or -(-last // PANEL) == tensor.shape[0]))
    if not rows_fit or begin % unit or (end % unit and end != width):
        return None
    tensor = replace(tensor.rows(first // PANEL, -(-last // PANEL)), is_part=True)
    if (begin, end) == (0, width):
        return tensor
    before = form.shape(PANEL, begin)[1]
    return tensor.columns(before, before + form.shape(PANEL, end - begin)[1])


def check_split(config: AnyConfig, size: int, weight_format: WeightFormat | None, where: str) -> None:
    """Checks whether `size` ranks can share a model.

    Args:
        weight_format: format of the weights in memory; None if it is not known.
        where: the setting to name in the error.

    Raises:
        ConfigError: the model cannot be split; names the first size that fails and the nearest numbers of ranks that
            work.
    """
    if size == 1:
        return
    unknown = next((place.name for place in tensor_places(config) if not _has_split(place)), None)
    if unknown is not None:
        problem: str | None = f"{config.architecture} has tensors that ranks cannot share yet, such as {unknown}"
        fitting = [1]
    else:
        problem = _obstacle(config, size, weight_format)
        fitting = [ranks for ranks in range(1, config.num_heads + 1) if _obstacle(config, ranks, weight_format) is None]
    if problem is None:
        return
    below, above = [n for n in fitting if n < size][-1:], [n for n in fitting if n > size][:1]
    raise ConfigError(
        f"{where}: model_parallel is {size}, and {problem}",
        f"the nearest that works is model_parallel {' or '.join(map(str, below + above))}",
    )


def _obstacle(config: AnyConfig, size: int, weight_format: WeightFormat | None) -> str | None:
    if size == 1:
        return None
    heads = config.num_heads
    if heads % size:
        return f"{heads} attention heads cannot be split {size} ways"
    if isinstance(config, ModelConfig) and config.norms_all_heads:
        return "its norm of all heads cannot be split"
    if isinstance(config, ModelConfig) and config.latent is None:
        kv_heads = config.num_kv_heads
        if kv_heads % size and size % kv_heads:
            return f"{kv_heads} key/value heads can neither be split {size} ways nor be shared evenly by {size} ranks"
    widths = _widths(config)
    for name, width in widths.items():
        if width < size:
            return f"{name} {width} cannot be split {size} ways"
    if math.ceil(config.vocab_size / PANEL) < size:
        return f"a vocabulary of {config.vocab_size} cannot be split {size} ways in parts of {PANEL}"
    if weight_format is not None and weight_format.quantized:
        columns = heads // size * _answer(config)
        if columns % GROUP:
            return (
                f"{heads // size} heads of {_answer(config)} are {columns} columns, which {weight_format.value} takes "
                f"in groups of {GROUP}"
            )
        for name, width in widths.items():
            if math.ceil(width / GROUP) < size:
                return f"{name} {width} has too few groups of {GROUP} for {weight_format.value} on {size} ranks"
    return None


def _widths(config: AnyConfig) -> dict[str, int]:
    """Returns the widths of the model's feed-forwards and experts, by their names in the config."""
    if not isinstance(config, ModelConfig) or config.experts is None:
        return {"intermediate_size": config.intermediate_size}
    widths = {} if all(config.experts.layers) else {"intermediate_size": config.intermediate_size}
    widths["the experts' width"] = config.experts.width
    if config.experts.shared_width:
        widths["the shared expert's width"] = config.experts.shared_width
    return widths
