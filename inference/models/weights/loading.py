"""Fills a network's parameters from a checkpoint, tensor by tensor.

Knows names, shapes and formats. The parameters are plain numpy arrays here, so that this module does not need
mindspore. Peak memory is that of the parameters and a part of one tensor: a tensor is read from the mapped file
straight into its place, and only packing needs a copy of some rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inference.checkpoint.quantized_tensor import QuantizedTensor
from inference.checkpoint.tensor import Checkpoint, StoredTensor
from inference.errors import CheckpointError
from inference.kernels.formats import PANEL, Format, pack, pack_codes_into, pack_into, unpack
from inference.models.architecture.t5_config import AnyConfig
from inference.models.weights.parameters import (
    DERIVED,
    EMBEDDING,
    HEAD,
    TensorPlace,
    hugging_face_name,
    is_draft_layer,
    separate_experts,
    spare_names,
    tensor_places,
)
from inference.models.weights.sharding import PACKED, Pairs, Shard
from inference.models.weights.weight_formats import memory_layout

SHOWN = 5
# Rows rounded at a time, so that working memory stays small; whole panels.
ROWS_AT_ONCE = 16 * PANEL
# Elements read and packed at a time; enough to occupy all threads.
PACKED_AT_ONCE = 1 << 22
# `formats.pack_into`, or its native equivalent.
PackInto = Callable[[np.ndarray, Format, np.ndarray, int], None]


def check_sizes(checkpoint: Checkpoint, config: AnyConfig, path: Path) -> None:
    """Compares a config's sizes with a checkpoint's headers, before tables of those sizes are built.

    Raises:
        CheckpointError: the config has more layers or more weights than the files can hold.
    """
    if config.num_layers > len(checkpoint):
        raise CheckpointError(
            f"{path} does not fit the config: it holds {len(checkpoint)} tensors, and the config says "
            f"{config.num_layers} layers"
        )
    size = sum(tensor.stored_bytes for tensor in checkpoint.values())
    # Every format takes at least one bit per weight.
    if config.num_parameters > 8 * size:
        raise CheckpointError(
            f"{path} does not fit the config: it holds {size} bytes of weights, and the config's sizes add up to "
            f"{config.num_parameters} parameters"
        )


def has_own_head(checkpoint: Checkpoint, config: AnyConfig) -> bool:
    """Whether a checkpoint's output head differs from its embedding; reads both to compare them."""
    found = {hugging_face_name(name, config.storage.names): tensor for name, tensor in checkpoint.items()}
    embedding, head = found.get(EMBEDDING), found.get(HEAD)
    if embedding is None or head is None or embedding.shape != head.shape or len(head.shape) != 2:
        return False
    step = max(1, PACKED_AT_ONCE // max(1, head.shape[1]))
    for begin in range(0, head.shape[0], step):
        end = min(begin + step, head.shape[0])
        values = np.empty((2, end - begin, head.shape[1]), np.float32)
        embedding.rows(begin, end).read_into(values[0])
        head.rows(begin, end).read_into(values[1])
        if not np.array_equal(values[0], values[1], equal_nan=True):
            return True
    return False


def fit(checkpoint: Checkpoint, config: AnyConfig, path: Path) -> Pairs:
    """Pairs every tensor that the model needs with the stored one.

    Raises:
        CheckpointError: tensors are missing, unexpected or of the wrong shape; the message has their number and the
            first few names.
    """
    stored = _by_our_names(checkpoint, config, path)
    places = tensor_places(config, stored)
    known = {place.name for place in places} | spare_names(config)
    missing = list(dict.fromkeys(place.name for place in places if place.name not in stored))
    unexpected = [name for name in stored if name not in known and not is_draft_layer(name, config)]
    misshapen = [
        f"{place.name} is {list(stored[place.name].shape)}, the config says {list(place.stored_shape)}"
        for place in places
        if place.name in stored
        and (stored[place.name].shape, stored[place.name].dtype == PACKED) != (place.stored_shape, False)
    ]
    problems = [
        f"{len(names)} {kind}: {', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
        if names
    ]
    if problems:
        raise CheckpointError(f"{path} does not fit the config: tensors {'; '.join(problems)}")
    return [(stored[place.name], place) for place in places]


def _by_our_names(checkpoint: Checkpoint, config: AnyConfig, path: Path) -> Checkpoint:
    stored: Checkpoint = {}
    for name, tensor in checkpoint.items():
        ours = hugging_face_name(name, config.storage.names)
        if ours in stored:
            raise CheckpointError(f"{path}: '{stored[ours].name}' and '{name}' are two spellings of one tensor")
        if not DERIVED.search(name):
            stored |= separate_experts(ours, tensor)
    return stored


def fit_packed(
    checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]], formats: Mapping[str, Format], path: Path
) -> Pairs:
    """Pairs every parameter of a model that `convert` packed with its stored form.

    Args:
        shapes: shapes of the parameters.
        formats: formats of the parameters.

    Raises:
        CheckpointError: parameters are missing or have the wrong shape.
    """
    pairs = []
    for name, shape in shapes.items():
        stored = checkpoint.get(name)
        if stored is None or (stored.dtype, stored.shape) != memory_layout(shape, formats[name]):
            found = "missing" if stored is None else f"{stored.dtype} {list(stored.shape)}"
            raise CheckpointError(
                f"{path} does not fit its config: packed parameter {name} is {found}", "convert it again"
            )
        pairs.append((stored, TensorPlace(name, stored.shape, name)))
    return pairs


class NotFiniteError(ValueError):
    """The values contain NaN or infinity."""


def check_finite(values: np.ndarray) -> None:
    """Raises `NotFiniteError` if values contain NaN or infinity; the sum is a fast first check."""
    with np.errstate(over="ignore", invalid="ignore"):
        # Large finite values can also overflow the sum.
        if not np.isfinite(values.sum()) and not np.isfinite(values).all():
            raise NotFiniteError


@dataclass(frozen=True)
class Destination:
    """Memory that a parameter's tensors are written to.

    Args:
        array: writable; plain float32 rows, or packed uint8 in `memory`'s format.
        memory: the format that the array is packed in; None for plain rows.
        precision: the format to which the values are rounded. Packing rounds them anyway; plain memory stores them
            after rounding to `precision`, so that stock operators compute with the same weights.
        pack_into: function that packs rows.
    """

    array: np.ndarray
    memory: Format | None
    precision: Format
    pack_into: PackInto = pack_into

    def write(self, tensor: StoredTensor, place: TensorPlace) -> None:
        """Reads a tensor into the rows of its place, and converts it to the format.

        Raises:
            CheckpointError: the tensor contains NaN or infinity, and the format can represent neither.
        """
        try:
            self._write(tensor, place)
        except NotFiniteError:
            raise CheckpointError(
                f"tensor '{tensor.name}' holds NaN or infinity, which {self.precision.value} cannot hold",
                "the checkpoint is damaged: fetch it again, or look at it with --weight_dtype float32",
            ) from None

    def _write(self, tensor: StoredTensor, place: TensorPlace) -> None:
        if tensor.dtype == PACKED:
            self._write_packed(tensor, place.first_row)
        elif isinstance(tensor, QuantizedTensor) and tensor.is_held_by(self.precision) and place.keeps_rows:
            self._write_codes(tensor, place)
        elif place.is_arranged:
            rows = place.arranged(self._read(tensor, place))
            self._write_rows(place.computed(rows) if place.is_computed else rows, place.first_row)
        elif self.memory is None:
            rows = self.array[place.first_row : place.first_row + tensor.shape[0]]
            tensor.read_into(rows)
            if place.is_computed:
                rows[:] = place.computed(rows)
            self._round(rows)
        else:
            count = max(1, PACKED_AT_ONCE // tensor.shape[1])
            for begin in range(0, tensor.shape[0], count):
                rows = self._read(tensor.rows(begin, min(begin + count, tensor.shape[0])), place)
                self._write_rows(place.computed(rows) if place.is_computed else rows, place.first_row + begin)

    def _write_codes(self, tensor: QuantizedTensor, place: TensorPlace) -> None:
        """Copies integers and scales without another rounding, with the rows in the order of the place."""
        count = tensor.shape[0] if place.order is not None else max(PANEL, PACKED_AT_ONCE // tensor.shape[1])
        for begin in range(0, tensor.shape[0], count):
            found, first = tensor.rows(begin, min(begin + count, tensor.shape[0])).codes(), place.first_row + begin
            if place.order is not None:
                found = found.in_order(place.order)
            check_finite(found.scales)
            if found.minimums is not None:
                check_finite(found.minimums)
            if self.memory is None:
                self.array[first : first + len(found.codes)] = found.rounded().values()
            else:
                halves = found.half_scales(), self.memory, self.array, first, found.half_minimums()
                pack_codes_into(found.codes, *halves)

    def _write_rows(self, rows: np.ndarray, first_row: int) -> None:
        """Writes rows of values, or of elements of the memory's own type."""
        if self.memory is not None:
            self._check(rows)
            self.pack_into(np.ascontiguousarray(rows), self.memory, self.array, first_row)
            return
        self.array[first_row : first_row + len(rows)] = rows
        self._round(self.array[first_row : first_row + len(rows)])

    def write_values(self, values: np.ndarray, first_row: int = 0) -> None:
        """Writes float32 values to the rows from `first_row` on."""
        if self.memory is None:
            rows = self.array[first_row : first_row + len(values)]
            rows[:] = values
            self._round(rows)
        else:
            self.pack_into(values, self.memory, self.array, first_row)

    def _read(self, tensor: StoredTensor, place: TensorPlace) -> np.ndarray:
        """Reads the tensor's values, or its raw elements if the memory has the same 16-bit type."""
        memory = self.memory
        if memory and tensor.dtype == memory.value and memory.item_size == 2 and not place.is_computed:
            elements = np.empty(tensor.shape, np.uint16)
            tensor.read_bytes_into(elements.view(np.uint8))
            return elements
        values = np.empty(tensor.shape, np.float32)
        tensor.read_into(values)
        return values

    def _write_packed(self, tensor: StoredTensor, first_row: int) -> None:
        if self.memory is not None:
            tensor.read_bytes_into(self.array[first_row // PANEL :][: tensor.shape[0]])
            return
        packed = np.empty(tensor.shape, np.uint8)
        tensor.read_bytes_into(packed)
        rows = self.array[first_row : first_row + tensor.shape[0] * PANEL]
        count, columns = rows.shape
        for row in range(0, count, ROWS_AT_ONCE):
            part = rows[row : row + ROWS_AT_ONCE]
            panels = packed[row // PANEL : (row + ROWS_AT_ONCE) // PANEL]
            part[:] = unpack(panels, self.precision, len(part), columns)

    def _check(self, rows: np.ndarray) -> None:
        """Checks for NaN and infinity before packing to integers, which would turn them into plausible weights."""
        if self.precision.quantized:
            check_finite(rows)

    def _round(self, rows: np.ndarray) -> None:
        self._check(rows)
        if self.precision is not Format.FLOAT32:
            for row in range(0, len(rows), ROWS_AT_ONCE):
                part = rows[row : row + ROWS_AT_ONCE]
                part[:] = unpack(pack(part, self.precision), self.precision, *part.shape)


def load(
    pairs: Pairs,
    destinations: Mapping[str, Destination],
    progress: Callable[[StoredTensor], None] | None = None,
) -> None:
    """Copies every stored tensor into the rows of its parameter.

    Args:
        destinations: by parameter name.
        progress: called after each tensor.
    """
    for tensor, place in pairs:
        destinations[place.parameter].write(tensor, place)
        if progress:
            progress(tensor)


def fill_random(
    shapes: Mapping[str, tuple[int, ...]],
    destinations: Mapping[str, Destination],
    seed: int = 0,
    scale: float = 0.02,
    shard: Shard | None = None,
) -> None:
    """Fills in random weights, to try a config without a checkpoint: norms are 1, biases 0, matrices normal.

    Args:
        shapes: shapes of the whole model's parameters.
        shard: the part that the destinations hold; all ranks together get the weights that one process would.
    """
    generator = np.random.default_rng(seed)
    for name, shape in shapes.items():
        if len(shape) == 1:
            values = np.full(shape, 0 if name.endswith("bias") else 1, np.float32)
        else:
            values = generator.standard_normal(shape, dtype=np.float32)
            values *= scale
        if shard is None:
            destinations[name].write_values(values)
            continue
        for part, first_row in shard.cut_values(name, values):
            destinations[name].write_values(part, first_row)
