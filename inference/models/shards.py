"""Which part of every tensor a rank holds, where several ranks share a model (tensor parallel).

As Megatron-LM splits a transformer (Shoeybi et al. 2019, section 3): the first product of each half by rows of its
weight, so that a rank has whole heads, or some columns of the feed-forward; the second by columns, so that the ranks'
results are added; embedding and head by tokens of the vocabulary. A rank's part of a model is a smaller model:
`Shard.config` is its config, and all that follows from sizes (shapes, memory, cache) follows from that. Never imports
mindspore.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from inference.errors import CheckpointError, ConfigError
from inference.kernels.formats import GROUP, PAIR, PANEL, Format
from inference.models.checkpoint import StoredTensor
from inference.models.config import ModelConfig
from inference.models.parameters import TensorPlace, parameter_shapes, tensor_places
from inference.models.t5_config import AnyConfig

# The type of tensors that `convert` packed.
PACKED = "uint8"
Pairs = list[tuple[StoredTensor, TensorPlace]]
Bounds = tuple[int, int]


@dataclass(frozen=True)
class Split:
    """How a tensor is shared out.

    Args:
        axis: the one that is cut; None for a tensor that every rank has whole.
        extent: what the axis counts, a key of `EXTENTS`.
        first_only: only the first rank has it, because the ranks' results are added.
    """

    axis: int | None = None
    extent: str = ""
    first_only: bool = False


REPLICATED, FIRST_ONLY = Split(), Split(first_only=True)
# By the end of a tensor's name. A tensor that is not here cannot be shared: nobody has said how. What a half does with
# its result besides adding it to the stream (a norm, say) has to come after the sum over the ranks.
SPLITS = {
    "model.embed_tokens.weight": Split(0, "vocabulary"),
    "lm_head.weight": Split(0, "vocabulary"),
    "model.norm.weight": REPLICATED,
    "input_layernorm.weight": REPLICATED,
    "post_attention_layernorm.weight": REPLICATED,
    "self_attn.q_norm.weight": REPLICATED,
    "self_attn.k_norm.weight": REPLICATED,
    "self_attn.q_proj.weight": Split(0, "heads"),
    "self_attn.q_proj.bias": Split(0, "heads"),
    "self_attn.k_proj.weight": Split(0, "kv_heads"),
    "self_attn.k_proj.bias": Split(0, "kv_heads"),
    "self_attn.v_proj.weight": Split(0, "kv_heads"),
    "self_attn.v_proj.bias": Split(0, "kv_heads"),
    "self_attn.o_proj.weight": Split(1, "heads"),
    "self_attn.o_proj.bias": FIRST_ONLY,
    "mlp.gate_proj.weight": Split(0, "width"),
    "mlp.gate_proj.bias": Split(0, "width"),
    "mlp.up_proj.weight": Split(0, "width"),
    "mlp.up_proj.bias": Split(0, "width"),
    "mlp.down_proj.weight": Split(1, "width"),
    "mlp.down_proj.bias": FIRST_ONLY,
}


def _vocabulary(config: ModelConfig, rank: int, size: int) -> Bounds:
    """Whole panels, so that packed weights can be cut too."""
    return _even(config.vocab_size, PANEL, rank, size)


def _heads(config: ModelConfig, rank: int, size: int) -> Bounds:
    rows = config.num_heads // size * config.head_dim
    return rank * rows, (rank + 1) * rows


def _kv_heads(config: ModelConfig, rank: int, size: int) -> Bounds:
    """Where there are fewer heads than ranks, neighbouring ranks have the same one."""
    count = max(1, config.num_kv_heads // size)
    first = rank * config.num_kv_heads // size
    return first * config.head_dim, (first + count) * config.head_dim


def _width(config: ModelConfig, rank: int, size: int) -> Bounds:
    """Whole groups of a quantised format, where there are enough of them."""
    width = config.intermediate_size
    return _even(width, GROUP if -(-width // GROUP) >= size else 1, rank, size)


def _even(count: int, unit: int, rank: int, size: int) -> Bounds:
    units = -(-count // unit)
    return min(count, units * rank // size * unit), min(count, units * (rank + 1) // size * unit)


EXTENTS: dict[str, Callable[[ModelConfig, int, int], Bounds]] = {
    "vocabulary": _vocabulary,
    "heads": _heads,
    "kv_heads": _kv_heads,
    "width": _width,
}


def split_of(name: str) -> Split:
    """How a checkpoint's tensor is shared out.

    Raises:
        KeyError: nobody has said.
    """
    for ending, split in SPLITS.items():
        if name.endswith(ending):
            return split
    raise KeyError(f"nobody has said how ranks share {name}: add it to {__name__}.SPLITS")


def _has_split(name: str) -> bool:
    return name.endswith(tuple(SPLITS))


@dataclass(frozen=True)
class Piece:
    """A tensor of a checkpoint, and the part of it that a rank has.

    Args:
        whole: its place in one process's network.
        own: its place in the rank's network; as long as the part.
        bounds: first and last + 1 along each axis.
    """

    whole: TensorPlace
    own: TensorPlace
    bounds: tuple[Bounds, ...]


@dataclass(frozen=True)
class Shard:
    """The part of a model that is rank `rank`'s, of `size` ranks.

    `check_split` says beforehand whether there is one.
    """

    model: AnyConfig
    rank: int = 0
    size: int = 1

    @property
    def is_whole(self) -> bool:
        return self.size == 1

    @property
    def is_first(self) -> bool:
        """Whether it adds what all ranks have: residuals and the biases of sums."""
        return self.rank == 0

    def bounds(self, extent: str) -> Bounds:
        """Where this rank's part of an axis begins and ends."""
        assert isinstance(self.model, ModelConfig)
        return EXTENTS[extent](self.model, self.rank, self.size)

    @cached_property
    def config(self) -> AnyConfig:
        """The rank's part as a model of its own."""
        if self.is_whole:
            return self.model
        assert isinstance(self.model, ModelConfig)
        sizes = {extent: end - begin for extent in EXTENTS for begin, end in [self.bounds(extent)]}
        return replace(
            self.model,
            vocab_size=sizes["vocabulary"],
            num_heads=sizes["heads"] // self.model.head_dim,
            num_kv_heads=sizes["kv_heads"] // self.model.head_dim,
            intermediate_size=sizes["width"],
        )

    @property
    def first_token(self) -> int:
        """The first token of its part of the vocabulary."""
        return 0 if self.is_whole else self.bounds("vocabulary")[0]

    def pieces(self) -> Iterator[Piece]:
        """The parts of tensors that it has, in the order of a checkpoint."""
        assert isinstance(self.model, ModelConfig) and isinstance(self.config, ModelConfig)
        for whole, own in zip(tensor_places(self.model), tensor_places(self.config), strict=True):
            split = split_of(whole.name)
            if split.first_only and not self.is_first:
                continue
            bounds = [(0, length) for length in whole.shape]
            if split.axis is not None:
                bounds[split.axis] = self.bounds(split.extent)
            assert own.shape == tuple(end - begin for begin, end in bounds), whole.name
            yield Piece(whole, own, tuple(bounds))

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters of its network."""
        if self.is_whole:
            return parameter_shapes(self.model)
        shapes: dict[str, tuple[int, ...]] = {}
        for piece in self.pieces():
            place = piece.own
            shapes[place.parameter] = (place.first_row + place.shape[0], *place.shape[1:])
        return shapes

    def keep(self, pairs: Pairs) -> Pairs:
        """Of the tensors of a rank's own checkpoint those that it has."""
        own = {piece.own.name for piece in self.pieces()}
        return [pair for pair in pairs if pair[1].name in own]

    def cut(self, pairs: Pairs) -> Pairs:
        """Its parts of stored tensors, which are as a checkpoint for one process has them.

        Raises:
            CheckpointError: tensors that belong apart are stored as one.
        """
        if self.is_whole:
            return pairs
        stored = {place.name: tensor for tensor, place in pairs}
        joined = next((piece.whole.name for piece in self.pieces() if piece.whole.name not in stored), None)
        if joined:
            raise CheckpointError(
                f"{joined} is stored as a part of another tensor, which {self.size} ranks cannot cut yet",
                "give a checkpoint with tensors of their own, or model_parallel 1",
            )
        return [(_cut(stored[piece.whole.name], piece.bounds), piece.own) for piece in self.pieces()]

    def cut_packed(self, pairs: Pairs, formats: dict[str, Format], path: Path) -> Pairs:
        """The same for parameters that `convert` packed.

        Raises:
            CheckpointError: a part begins or ends inside what is packed together.
        """
        stored = {place.name: tensor for tensor, place in pairs}
        parts = []
        for piece in self.pieces():
            tensor, place = stored[piece.whole.parameter], piece.own
            if tensor.dtype != PACKED:
                first = piece.whole.first_row
                parts.append((tensor.rows(first + piece.bounds[0][0], first + piece.bounds[0][1]), place))
                continue
            part = _cut_packed(tensor, piece, formats[place.parameter])
            if part is None:
                raise CheckpointError(
                    f"{path}: packed {place.parameter} cannot be cut for {self.size} ranks",
                    f"convert the original checkpoint with --model_parallel {self.size}",
                )
            parts.append((part, place))
        return parts

    def cut_values(self, parameter: str, values: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
        """Its parts of a whole parameter's values, and the row of its own parameter where each begins."""
        if self.is_whole:
            yield values, 0
            return
        for piece in self.pieces():
            if piece.own.parameter == parameter:
                first = piece.whole.first_row
                rows = slice(first + piece.bounds[0][0], first + piece.bounds[0][1])
                window = (rows, *(slice(*bounds) for bounds in piece.bounds[1:]))
                yield values[window], piece.own.first_row


def _cut(tensor: StoredTensor, bounds: tuple[Bounds, ...]) -> StoredTensor:
    if bounds[0] != (0, tensor.shape[0]):
        tensor = replace(tensor.rows(*bounds[0]), is_part=True)
    if len(bounds) > 1 and bounds[1] != (0, tensor.shape[1]):
        tensor = tensor.columns(*bounds[1])
    return tensor


def _cut_packed(tensor: StoredTensor, piece: Piece, form: Format) -> StoredTensor | None:
    """Rows in whole panels, columns in whole pairs of groups; None where that is not what the part is."""
    (first, last), (begin, end) = piece.bounds
    height, width = piece.whole.shape
    first, last, top = first + piece.whole.first_row, last + piece.whole.first_row, height + piece.whole.first_row
    unit = PAIR if form.quantised else 1
    # The last panel may be shorter, where nothing follows.
    rows_fit = first % PANEL == 0 and piece.own.first_row % PANEL == 0
    rows_fit &= last % PANEL == 0 or (last == top and -(-last // PANEL) == tensor.shape[0])
    if not rows_fit or begin % unit or (end % unit and end != width):
        return None
    tensor = replace(tensor.rows(first // PANEL, -(-last // PANEL)), is_part=True)
    if (begin, end) == (0, width):
        return tensor
    before = form.shape(PANEL, begin)[1]
    return tensor.columns(before, before + form.shape(PANEL, end - begin)[1])


def check_split(config: AnyConfig, size: int, weight_format: Format | None, where: str) -> None:
    """Whether `size` ranks can share a model.

    Args:
        weight_format: of the weights in memory; None where that is not known.
        where: what to name in the error.

    Raises:
        ConfigError: the first number that cannot be split, and the nearest numbers of ranks that would work.
    """
    problem = _obstacle(config, size, weight_format)
    if problem is None:
        return
    fitting = [ranks for ranks in range(1, config.num_heads + 1) if _obstacle(config, ranks, weight_format) is None]
    below, above = [n for n in fitting if n < size][-1:], [n for n in fitting if n > size][:1]
    raise ConfigError(
        f"{where}: model_parallel is {size}, and {problem}",
        f"the nearest that works is model_parallel {' or '.join(map(str, below + above))}",
    )


def _obstacle(config: AnyConfig, size: int, weight_format: Format | None) -> str | None:
    if size == 1:
        return None
    if not isinstance(config, ModelConfig):
        return "an encoder with a decoder cannot be shared yet"
    heads, kv_heads = config.num_heads, config.num_kv_heads
    unknown = [place.name for place in tensor_places(config) if not _has_split(place.name)]
    if unknown:
        return f"{config.architecture} has tensors that ranks cannot share yet, such as {unknown[0]}"
    if config.alibi:
        # The slopes follow from the number of all heads, of which a rank knows its own.
        return "heads whose scores fall with the distance (ALiBi) cannot be split yet"
    if heads % size:
        return f"{heads} attention heads cannot be split {size} ways"
    if kv_heads % size and size % kv_heads:
        return f"{kv_heads} key/value heads can neither be split {size} ways nor be shared evenly by {size} ranks"
    if config.intermediate_size < size:
        return f"intermediate_size {config.intermediate_size} cannot be split {size} ways"
    if math.ceil(config.vocab_size / PANEL) < size:
        return f"a vocabulary of {config.vocab_size} cannot be split {size} ways in parts of {PANEL}"
    if weight_format is not None and weight_format.quantised:
        columns = heads // size * config.head_dim
        if columns % GROUP:
            return (
                f"{heads // size} heads of {config.head_dim} are {columns} columns, which {weight_format.value} takes "
                f"in groups of {GROUP}"
            )
        if math.ceil(config.intermediate_size / GROUP) < size:
            return (
                f"intermediate_size {config.intermediate_size} has too few groups of {GROUP} for "
                f"{weight_format.value} on {size} ranks"
            )
    return None
