"""LoRA adapters as PEFT saves them: `adapter_config.json` beside `adapter_model.safetensors`.

An adapter changes a matrix W [out, in] to W + scale * B A, with A [rank, in] and B [out, rank] (Hu et al. 2021, eq. 3);
the scale is lora_alpha / rank, or lora_alpha / sqrt(rank) if rank-stabilized (Kalajdzievski 2023). An adapter is merged
into the weights as they are read, or kept beside them for the rows that select it. `fan_in_fan_out` is not read: it
states how the base model stores W, which the table of its tensors already knows. Never imports mindspore.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from inference.checkpoint.open import open_checkpoint
from inference.checkpoint.tensor import StoredTensor
from inference.config import InferenceConfig
from inference.config.schema import SLORA
from inference.errors import CheckpointError, ConfigError, ModelNotFoundError
from inference.files.read import exists, read_json_object
from inference.files.values import POSITIVE, SIZE, TEXTS, is_text
from inference.kernels.formats import to_bfloat16
from inference.kernels.weight import Addition
from inference.models.architecture.config import ModelConfig
from inference.models.architecture.registry import ARCHITECTURES
from inference.models.architecture.t5_config import AnyConfig
from inference.models.weights.parameters import (
    DISTANCES,
    EMBEDDING,
    POSITIONS,
    SHARED,
    TensorPlace,
    hugging_face_name,
    tensor_places,
)
from inference.models.weights.sharding import Pairs, Shard

SLORA_FILE = "lora_adapter.json"
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
# Groups: the module, and A or B. The first releases of PEFT put the adapter's name before `weight`.
_NAME = re.compile(r"base_model\.model\.(.+)\.lora_([AB])(?:\.[^.]+)?\.weight")
# Other options of PEFT's LoRA; none of them is a low-rank addition to a matrix.
_REFUSED = (
    "modules_to_save",
    "use_dora",
    "lora_bias",
    "use_qalora",
    "alora_invocation_tokens",
    "target_parameters",
    "trainable_token_indices",
    "layer_replication",
)
# These initializations change the base weights, so the adapter does not fit the original ones.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")
# Tables that are only looked up by row, never multiplied.
_LOOKED_UP = (EMBEDDING, POSITIONS, SHARED, DISTANCES)


@dataclass(frozen=True)
class LowRank:
    """An adapter's addition to one tensor: scale * up [out, rank] down [rank, in]."""

    module: str
    down: StoredTensor
    up: StoredTensor
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the matrix that it is added to, [out, in]."""
        return self.up.shape[0], self.down.shape[1]

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Reads (scale * up, down), float32."""
        up, down = np.empty(self.up.shape, np.float32), np.empty(self.down.shape, np.float32)
        self.up.read_into(up)
        self.down.read_into(down)
        return up * np.float32(self.scale), down


@dataclass(frozen=True)
class Adapter:
    """An adapter for a model: its additions, by the tensors' names as in Hugging Face's Llama.

    Args:
        name: the name by which rows select it.
        path: its directory.
    """

    name: str
    path: Path
    parts: Mapping[str, LowRank]

    @property
    def num_bytes(self) -> int:
        """Number of bytes that it needs in memory besides the weights."""
        return sum(4 * (math.prod(part.up.shape) + math.prod(part.down.shape)) for part in self.parts.values())

    @property
    def tensors(self) -> list[StoredTensor]:
        """Returns all of its stored tensors."""
        return [tensor for part in self.parts.values() for tensor in (part.down, part.up)]

    def merged(self, pairs: Pairs, config: AnyConfig) -> Pairs:
        """Returns the model's stored tensors with the adapter merged in.

        Raises:
            CheckpointError: the checkpoint lacks a tensor that the adapter changes, or its shape differs.
        """
        self._check([place for _, place in pairs])
        names = {place.name for _, place in pairs}
        published = {place.name: place for place in tensor_places(as_published(config), names)}
        return [
            (self._merged(tensor, place, published[place.name]), place) if place.name in self.parts else (tensor, place)
            for tensor, place in pairs
        ]

    def _merged(self, tensor: StoredTensor, place: TensorPlace, published: TensorPlace) -> MergedTensor:
        """Returns a tensor with its part of the adapter merged in.

        Args:
            published: its place in the layout that its family publishes, for which adapters are trained.
        """
        up, down = self.parts[place.name].arrays()
        if place.order is not published.order:
            up = _as_stored(up if published.order is None else up[published.order], place)
        return MergedTensor.of(tensor, up, down, place)

    def merged_of_rank(self, pairs: Pairs, shard: Shard) -> Pairs:
        """Returns the tensors of a rank's own checkpoint, which are parts of the model's, with the adapter merged in.

        Raises:
            CheckpointError: the whole model lacks a tensor that the adapter changes, or the rank's checkpoint has it
                fused.
        """
        published = replace(shard, model=as_published(shard.model))
        self._check(tensor_places(published.model, self.parts))
        pieces = {piece.whole.name: piece for piece in published.pieces()}
        fused = self.parts.keys() - (pieces.keys() & {place.name for _, place in pairs})
        if fused:
            raise CheckpointError(
                f"{self.path}: {self.parts[min(fused)].module} is not a separate tensor in a checkpoint split by rank",
                "give the whole checkpoint",
            )
        merged: Pairs = []
        for tensor, place in pairs:
            if place.name in self.parts:
                up, down = pieces[place.name].factors(*self.parts[place.name].arrays())
                tensor = MergedTensor.of(tensor, up if place.take is not None else _as_stored(up, place), down, place)
            merged.append((tensor, place))
        return merged

    def places(self, config: AnyConfig) -> list[TensorPlace]:
        """Returns the places of its additions in the network's parameters.

        Raises:
            CheckpointError: the model has no such tensor, or the addition cannot be limited to some rows of a batch.
        """
        # The adapter's own tensor names show whether it treats matrices as fused.
        places = tensor_places(as_published(config), self.parts)
        self._check(places)
        mine = [place for place in places if place.name in self.parts]
        for place in mine:
            if place.parameter.endswith(_LOOKED_UP) or not place.takes_factors:
                raise CheckpointError(
                    f"{self.path}: {self.parts[place.name].module} cannot be adapted for some rows of a batch alone",
                    f"merge it into the weights with --merge_adapter {self.name}",
                )
        return mine

    def additions(self, shard: Shard, number: int) -> Iterator[tuple[str, Addition]]:
        """Yields its additions to the parameters of a rank's network.

        Args:
            number: the adapter's number in a step's tokens, from 1.
        """
        for place in self.places(shard.model):
            for first_row, up, down in place.factors(*self.parts[place.name].arrays()):
                for part in shard.cut_addition(place.parameter, Addition(number, first_row, down, up)):
                    yield place.parameter, part

    def _check(self, places: Sequence[TensorPlace]) -> None:
        known = {place.name: place for place in places}
        for name, part in self.parts.items():
            place = known.get(name)
            if place is None:
                raise CheckpointError(f"{self.path}: this model has no matrix {part.module} of its own to adapt")
            shape = place.taken_from if place.take is not None else place.shape
            if part.shape != shape:
                raise CheckpointError(
                    f"{self.path}: the adapter of {part.module} is for a matrix {list(part.shape)}, the model's is "
                    f"{list(shape)}",
                    "it was trained on another model",
                )


def _as_stored(rows: np.ndarray, place: TensorPlace) -> np.ndarray:
    """Reorders rows from the parameter's order to that of the stored tensor."""
    stored = np.empty_like(rows)
    stored[slice(None) if place.order is None else place.order] = rows
    return stored


def as_published(config: AnyConfig) -> AnyConfig:
    """Returns the config with its family's published tensor layout; GGUF and some MindFormers files reorder rows."""
    if not isinstance(config, ModelConfig):
        return config
    usual = ARCHITECTURES[config.architecture].storage
    return replace(config, storage=replace(usual, normalized_head=config.storage.normalized_head))


@dataclass(frozen=True, kw_only=True, eq=False)
class MergedTensor(StoredTensor):
    """A checkpoint's tensor with an adapter's addition, which is computed as the tensor is read.

    Args:
        left, right: the addition is their product, in the tensor's own orientation.
    """

    whole: StoredTensor
    left: np.ndarray
    right: np.ndarray

    @classmethod
    def of(cls, tensor: StoredTensor, up: np.ndarray, down: np.ndarray, place: TensorPlace) -> MergedTensor:
        """Returns the tensor of a place with up down [out, in] added; the rows of up are in the stored order."""
        left, right = (down.T, up.T) if place.transposed else (up, down)
        return cls(
            name=tensor.name,
            dtype=tensor.dtype,
            shape=tensor.shape,
            segments=tensor.segments,
            window=tensor.window,
            whole=tensor,
            left=left,
            right=right,
        )

    @property
    def can_be_mapped(self) -> bool:
        return False

    def read_into(self, out: np.ndarray) -> None:
        values = out.reshape(self.shape)
        self.whole.read_into(values)
        values += self.left @ self.right

    def read_bytes_into(self, out: np.ndarray) -> None:
        values = np.empty(self.shape, np.float32)
        self.read_into(values)
        stored = to_bfloat16(values) if self.dtype == "bfloat16" else values.astype(self.dtype)
        out.reshape(-1)[:] = np.ascontiguousarray(stored).view(np.uint8).reshape(-1)

    def rows(self, begin: int, end: int) -> MergedTensor:
        return self._cut(self.whole.rows(begin, end), self.left[begin:end], self.right)

    def columns(self, begin: int, end: int) -> MergedTensor:
        return self._cut(self.whole.columns(begin, end), self.left, self.right[:, begin:end])

    def _cut(self, whole: StoredTensor, left: np.ndarray, right: np.ndarray) -> MergedTensor:
        return replace(
            self, whole=whole, left=left, right=right, shape=whole.shape, segments=whole.segments, window=whole.window
        )


def adapter_paths(config: InferenceConfig) -> dict[str, Path]:
    """Returns the directories of a config's adapters by name: those in `adapters`, and those of MindFormers' `slora`.

    An empty `adapter_path`, the placeholder in MindFormers' own files, does not name an adapter.

    Raises:
        ConfigError: `pet_config` names no directory with a `lora_adapter.json` that maps names to directories.
    """
    paths = dict(config.adapters)
    pet = config.model.model_config.pet_config or {}
    if pet.get("pet_type") == SLORA and pet.get("adapter_path"):
        file = Path(str(pet.get("adapter_path"))) / SLORA_FILE
        named = read_json_object(file) if exists(file) else None
        if named is None or not all(is_text(path) for path in named.values()):
            where = config.origin("model.model_config.pet_config")
            raise ConfigError(
                f"{where}: {file} is not a mapping of adapter names to directories",
                "adapter_path is a directory with that file",
            )
        paths = named | paths
    return {name: Path(path).expanduser() for name, path in paths.items()}


def read_adapter(name: str, path: Path, config: AnyConfig) -> Adapter:
    """Opens an adapter of a model; reads only the headers of its tensor files.

    Args:
        name: the name by which rows select it.
        path: a directory written by PEFT's `save_pretrained`.
        config: the config of the model that it was trained for.

    Raises:
        ModelNotFoundError: there is no adapter.
        CheckpointError: it is damaged, or does anything other than add low-rank products to matrices.
    """
    settings = PeftConfig.read(path)
    if not exists(path / WEIGHTS_FILE):
        raise ModelNotFoundError(
            f"the adapter {name}: {path} holds no {WEIGHTS_FILE}",
            "PEFT writes it; an adapter_model.bin can run code when it is loaded, and is not read",
        )
    halves: dict[str, dict[str, StoredTensor]] = {}
    for stored in open_checkpoint(path / WEIGHTS_FILE).values():
        found = _NAME.fullmatch(stored.name)
        if not found or len(stored.shape) != 2:
            is_whole = not found and "lora_" not in stored.name
            what = "a whole matrix that was trained" if is_whole else "no half of a low-rank matrix (lora_A, lora_B)"
            raise CheckpointError(
                f"{path}: '{stored.name}' is {what}",
                "only low-rank additions to linear layers are read: merge it with PEFT, and give the merged model",
            )
        halves.setdefault(found[1], {})[found[2]] = stored
    if not halves:
        raise CheckpointError(f"{path}: {WEIGHTS_FILE} holds no tensors")
    parts = {}
    for module, pair in halves.items():
        if set(pair) != {"A", "B"}:
            raise CheckpointError(f"{path}: {module} has {''.join(f'lora_{half}' for half in pair)} alone")
        down, up = pair["A"], pair["B"]
        rank = settings.rank_of(module)
        if down.shape[0] != rank or up.shape[1] != rank:
            raise CheckpointError(
                f"{path}: {module} has lora_A {list(down.shape)} and lora_B {list(up.shape)}, {CONFIG_FILE} says rank "
                f"{rank}"
            )
        ours = hugging_face_name(f"{module}.weight", config.storage.names)
        parts[ours] = LowRank(module, down, up, settings.scale_of(module))
    settings.check_targets(list(halves))
    return Adapter(name, path, parts)


@dataclass(frozen=True)
class PeftConfig:
    """The adapter_config.json of an adapter that makes only low-rank additions."""

    path: Path
    values: Mapping[str, Any]

    @classmethod
    def read(cls, directory: Path) -> PeftConfig:
        """Reads the config in an adapter's directory.

        Raises:
            ModelNotFoundError: there is no config.
            CheckpointError: it is damaged, or requests something else.
        """
        path = directory / CONFIG_FILE
        if not exists(path):
            raise ModelNotFoundError(f"{directory} holds no {CONFIG_FILE}", "give a directory that PEFT saved")
        settings = cls(path, read_json_object(path, CheckpointError))
        settings._check()
        return settings

    def _check(self) -> None:
        values = self.values
        if values.get("peft_type") != "LORA":
            raise CheckpointError(f"{self.path}: peft_type is {values.get('peft_type')!r}", "only LORA is supported")
        asked = next((key for key in _REFUSED if values.get(key)), None)
        if asked:
            raise CheckpointError(
                f"{self.path}: {asked} is not supported", "merge it with PEFT, and give the merged model"
            )
        if values.get("bias", "none") != "none":
            raise CheckpointError(f"{self.path}: bias is {values['bias']!r}", "only none is supported")
        start = values.get("init_lora_weights")
        if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
            raise CheckpointError(
                f"{self.path}: init_lora_weights {start} changed the base model too",
                "save it with PEFT's path_initial_model_for_weight_conversion",
            )
        for key, reader, pattern in (("r", SIZE, "rank_pattern"), ("lora_alpha", POSITIVE, "alpha_pattern")):
            reader.read(values.get(key), f"{self.path}: {key}", CheckpointError)
            given = values.get(pattern) or {}
            if not isinstance(given, dict):
                raise CheckpointError(f"{self.path}: {pattern} must hold an object")
            for name, value in given.items():
                reader.read(value, f"{self.path}: {pattern} of {name}", CheckpointError)

    def rank_of(self, module: str) -> int:
        """Returns the rank of the product for a module."""
        return int(self._by_pattern("rank_pattern", module, self.values["r"]))

    def scale_of(self, module: str) -> float:
        """Returns the scale of the product for a module."""
        rank, alpha = self.rank_of(module), float(self._by_pattern("alpha_pattern", module, self.values["lora_alpha"]))
        return alpha / math.sqrt(rank) if self.values.get("use_rslora") else alpha / rank

    def _by_pattern(self, key: str, module: str, default: Any) -> Any:
        """Returns the value of the first pattern that matches the end of the module's name, as in PEFT."""
        for pattern, value in (self.values.get(key) or {}).items():
            if self._matches(rf"(.*\.)?({pattern})", module):
                return value
        return default

    def check_targets(self, modules: Sequence[str]) -> None:
        """Checks the stored modules against `target_modules`: a list of names or their endings, or an expression.

        Like PEFT, ignores names that match no module, because such lists are often written for several families.

        Raises:
            CheckpointError: a module is stored that `target_modules` does not name.
        """
        targets = self.values.get("target_modules")
        if targets == "all-linear":
            return
        if isinstance(targets, str):
            strange = [module for module in modules if not self._matches(targets, module)]
        else:
            names = TEXTS.read(targets or [], f"{self.path}: target_modules", CheckpointError)
            strange = [
                module for module in modules if not any(module == name or module.endswith(f".{name}") for name in names)
            ]
        if strange:
            raise CheckpointError(
                f"{self.path}: target_modules does not fit {WEIGHTS_FILE}: {strange[0]} is stored and not named"
            )

    def _matches(self, pattern: str, module: str) -> bool:
        try:
            return re.fullmatch(pattern, module) is not None
        except re.error as error:
            raise CheckpointError(f"{self.path}: '{pattern}' is not a regular expression: {error}") from error


@dataclass(frozen=True)
class Adapters:
    """The adapters of a run.

    Args:
        merged: the adapter that is merged into the weights; None for none.
        chosen: the adapters that rows may select; a step's tokens name them by their position, from 1.
    """

    merged: Adapter | None = None
    chosen: tuple[Adapter, ...] = ()

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Returns the number in a step's tokens for each name that a row may select; 0 for the model as loaded."""
        numbers = {adapter.name: index for index, adapter in enumerate(self.chosen, 1)}
        return numbers if self.merged is None else {self.merged.name: 0}

    @property
    def all(self) -> tuple[Adapter, ...]:
        return self.chosen if self.merged is None else (self.merged, *self.chosen)

    @property
    def num_bytes(self) -> int:
        """Number of bytes that they need besides the weights."""
        return sum(adapter.num_bytes for adapter in self.chosen)

    def additions(self, shard: Shard) -> dict[str, tuple[Addition, ...]]:
        """Returns the selectable adapters' additions to each parameter of a rank's network."""
        additions: dict[str, list[Addition]] = {}
        for number, adapter in enumerate(self.chosen, 1):
            for parameter, part in adapter.additions(shard, number):
                additions.setdefault(parameter, []).append(part)
        return {parameter: tuple(parts) for parameter, parts in additions.items()}
