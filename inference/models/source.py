"""Everything about a model that is known before it runs: its location, sizes, weights and settings.

Combines the config, the model's own files and the checkpoint's header, and checks that they fit together. Never imports
mindspore, so that mistakes are reported at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from inference.checkpoint.gguf_tensors import read_gguf_config
from inference.checkpoint.open import GGUF_SUFFIX, open_checkpoint, rank_folders
from inference.checkpoint.tensor import Checkpoint
from inference.config import GENERATION_FILE, GenerationConfig, InferenceConfig, read_generation_file
from inference.config.generation import GenerationSettings, settings_from_model
from inference.config.locate import locate_model, nearest_model
from inference.config.presets import is_preset
from inference.errors import ConfigError, ModelNotFoundError
from inference.files.read import check_regular, exists, is_file, read_json_object
from inference.kernels.formats import Format, WeightFormat
from inference.models.architecture.config import ModelConfig
from inference.models.architecture.config_aliases import lay_over
from inference.models.architecture.registry import ARCHITECTURES, model_config_from, resolve_architecture
from inference.models.architecture.t5_config import AnyConfig
from inference.models.weights import loading, weight_formats
from inference.models.weights.export import packed_format
from inference.models.weights.lora import Adapters, adapter_paths, read_adapter
from inference.models.weights.mindformers_fused import separate
from inference.models.weights.mindformers_layouts import as_published
from inference.models.weights.parameters import is_derived, parameter_shapes
from inference.models.weights.quantized import Scheme, dequantized, read_scheme
from inference.models.weights.sharding import Pairs, Shard, check_split
from inference.parallel.topology import origin_of_split, ranks_of_model
from inference.tokenizer import Tokenizer, load_tokenizer

CONFIG_FILE = "config.json"


@dataclass(frozen=True)
class ModelSource:
    """A model before it is built.

    Args:
        name: the model's name in results.
        directory: the directory of config.json and the tokenizer, or a GGUF file that has both; None if the YAML
            contains everything.
        checkpoint: file or directory of the weights; None for random weights.
        model: the architecture.
        generation: the generation settings that apply to every prompt.
        packed: the format or formats in which `convert` packed the weights; None for a checkpoint as published.
        scheme: how a checkpoint as published is quantized; None if it is not quantized.
        own_config: the keys of config.json, overridden by those of the YAML.
        ranks: number of ranks that share the model.
        adapters: the adapters, merged into the weights or selected by rows.
        stated_ends: ids that end an answer, by the file that states them.
        notes: lines for the user: where the model's files contradict each other, and how that was resolved.
    """

    config: InferenceConfig
    name: str
    directory: Path | None
    checkpoint: Path | None
    model: AnyConfig
    generation: GenerationConfig
    packed: WeightFormat | None = None
    own_config: Mapping[str, Any] = field(default_factory=dict)
    ranks: int = 1
    scheme: Scheme | None = None
    adapters: Adapters = field(default_factory=Adapters)
    stated_ends: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def ends_are_given(self) -> bool:
        """Whether the user's own eos_token_id determines which ids end an answer."""
        return bool(self.config.generation_config.eos_token_id)

    @property
    def is_split(self) -> bool:
        """Whether the checkpoint has a directory for each rank."""
        return self.checkpoint is not None and bool(rank_folders(self.checkpoint, self.ranks))

    def shard(self, model_rank: int = 0) -> Shard:
        """Returns a rank's part of the model."""
        return Shard(self.model, model_rank, self.ranks)

    def pairs(self, model_rank: int = 0) -> Pairs | None:
        """Returns the tensors of a rank's part of the checkpoint, and their places; None for random weights.

        Raises:
            CheckpointError: a file is damaged, or its tensors do not fit the config.
        """
        if self.checkpoint is None:
            return None
        shard = self.shard(model_rank)
        folders = rank_folders(self.checkpoint, self.ranks)
        path = folders[model_rank] if folders else self.checkpoint
        quantized = self.packed is None and self.scheme is not None
        checkpoint = open_checkpoint(path, self.config.load_ckpt_format, quantized, is_derived)
        if self.packed is None:
            if folders:
                return shard.keep(self.fit(checkpoint, path, shard))
            return shard.cut(self.fit(checkpoint, path))
        formats = weight_formats.formats_of(self.model, self.packed)
        if folders:
            return loading.fit_packed(checkpoint, shard.parameter_shapes(), formats, path)
        pairs = loading.fit_packed(checkpoint, parameter_shapes(self.model), formats, path)
        return pairs if shard.is_whole else shard.cut_packed(pairs, formats, path)

    def fit(self, checkpoint: Checkpoint, path: Path, shard: Shard | None = None) -> Pairs:
        """Returns the tensors of an unpacked checkpoint and their places; `path` names it in errors.

        Args:
            shard: the part of the model that the checkpoint holds, if it belongs to one rank; None for the whole model.

        Raises:
            CheckpointError: the tensors do not fit the config.
        """
        model = shard.config if shard else self.model
        loading.check_sizes(checkpoint, model, path)
        for transform in TRANSFORMS:
            checkpoint = transform(self, checkpoint, model, path)
        pairs = loading.fit(checkpoint, model, path)
        merged = self.adapters.merged
        if merged is None:
            return pairs
        return merged.merged_of_rank(pairs, shard) if shard else merged.merged(pairs, model)

    def tokenizer(self) -> Tokenizer:
        """Loads the model's tokenizer."""
        settings = self.config.processor.tokenizer.model_dump(exclude_unset=True, exclude_none=True)
        directory = self.directory or (self.checkpoint and _directory_of(self.checkpoint))
        usual = ARCHITECTURES[self.model.architecture].tokenizer
        return load_tokenizer(directory, settings=settings, usual_class=usual)


def _dequantize(source: ModelSource, checkpoint: Checkpoint, model: AnyConfig, path: Path) -> Checkpoint:
    return dequantized(checkpoint, source.scheme, model, path)


def _split_fused(source: ModelSource, checkpoint: Checkpoint, model: AnyConfig, path: Path) -> Checkpoint:
    if not isinstance(model, ModelConfig):
        return checkpoint
    return separate(checkpoint, model, source.config.engine.qkv_layout, path)


def _restore_layout(source: ModelSource, checkpoint: Checkpoint, model: AnyConfig, path: Path) -> Checkpoint:
    return as_published(checkpoint, model, path) if isinstance(model, ModelConfig) else checkpoint


Transform = Callable[[ModelSource, Checkpoint, AnyConfig, Path], Checkpoint]
# Transforms that convert a checkpoint to Hugging Face's tensors and names, in the order in which they apply. Each one
# leaves tensors that it does not know unchanged.
TRANSFORMS: tuple[Transform, ...] = (_dequantize, _split_fused, _restore_layout)


def resolve(config: InferenceConfig) -> ModelSource:
    """Finds the model that a config names.

    Raises:
        ModelNotFoundError: there is no model, or it has no checkpoint and random weights were not requested.
        ConfigError: sizes are missing or invalid.
    """
    config.check_supported()
    # Report an unsupported family before looking for files.
    for key, named in (("model.arch.type", config.model.arch.type), ("model.model_config.type", _config_class(config))):
        if named:
            resolve_architecture(named, config.origin(key))
    directory, checkpoint = _locate(config)
    values, where = _architecture(config, directory)
    model = model_config_from(values, where, config.model.arch.type)
    scheme = read_scheme(values, where)
    own = read_generation_file(directory / GENERATION_FILE) if directory else None
    generation = config.generation(model=own)
    ends = _stated_ends(config, own, values, where)
    if not config.generation_config.eos_token_id:
        generation = generation.updated(eos_token_id=list(dict.fromkeys(chain.from_iterable(ends.values()))))
    packed = packed_format(values, where)
    notes: tuple[str, ...] = ()
    if packed is None and checkpoint is not None and _has_own_head(checkpoint, model, scheme, config):
        assert isinstance(model, ModelConfig)
        model = replace(model, tie_embeddings=False)
        notes = (f"{where} says tie_word_embeddings, and the checkpoint has another output head, which is used",)
    ranks = ranks_of_model(config)
    if ranks > 1:
        asked = None if config.engine.weight_dtype == "auto" else Format(config.engine.weight_dtype)
        check_split(model, ranks, packed or asked, origin_of_split(config))
    name = _name(config, directory)
    adapters = _adapters(config, model, packed is not None or checkpoint is None)
    config.check_adapters("adapter_id", config.adapter_id or (), adapters.numbers)
    config.check_adapters("generation_config.adapter_id", (generation.adapter_id,), adapters.numbers)
    return ModelSource(
        config, name, directory, checkpoint, model, generation, packed, values, ranks, scheme, adapters, ends, notes
    )


def _has_own_head(checkpoint: Path, model: AnyConfig, scheme: Scheme | None, config: InferenceConfig) -> bool:
    """Whether a checkpoint has its own output head although its config ties the head to the embedding.

    T5 is excluded: its switch also determines how the decoder's output is scaled.
    """
    if not isinstance(model, ModelConfig) or not model.tie_embeddings:
        return False
    paths = rank_folders(checkpoint, ranks_of_model(config)) or [checkpoint]
    quantized = scheme is not None
    return any(
        loading.has_own_head(open_checkpoint(path, config.load_ckpt_format, quantized, is_derived), model)
        for path in paths
    )


def _stated_ends(
    config: InferenceConfig, own: GenerationSettings | None, values: Mapping[str, Any], where: str
) -> dict[str, tuple[int, ...]]:
    """Returns the ids that end an answer according to each of the model's files and to model.model_config."""
    if own is None:
        own = GenerationSettings()
    by_file = settings_from_model({"eos_token_id": values.get("eos_token_id")}, where).eos_token_id
    by_yaml = config.model.model_config.generation().eos_token_id
    origin = config.origin("model.model_config.eos_token_id")
    stated = {GENERATION_FILE: own.eos_token_id, where: by_file, origin: by_yaml}
    return {name: ids for name, ids in stated.items() if ids}


def _adapters(config: InferenceConfig, model: AnyConfig, only_chosen: bool) -> Adapters:
    """Reads the adapters that a config names; if one is merged, reads only that one.

    Args:
        only_chosen: no adapter can be merged into the weights.
    """
    paths, merged = adapter_paths(config), config.engine.merge_adapter
    config.check_adapters("engine.merge_adapter", (merged,), paths)
    if merged:
        if only_chosen:
            raise ConfigError(
                f"{config.origin('engine.merge_adapter')}: an adapter cannot be merged into weights that are packed or "
                "random",
                "give the original checkpoint, which convert packs with the adapter, too",
            )
        return Adapters(read_adapter(merged, paths[merged], model))
    chosen = tuple(read_adapter(name, path, model) for name, path in paths.items())
    for adapter in chosen:
        adapter.places(model)
    return Adapters(None, chosen)


def _locate(config: InferenceConfig) -> tuple[Path | None, Path | None]:
    """Returns the directory of the model's files, and the file or directory of its weights."""
    random_weights = config.engine.random_weights
    given = config.load_checkpoint or config.checkpoint_name_or_path
    if not given and not config.pretrained_model_dir and not random_weights:
        given = config.model.model_config.checkpoint_name_or_path
    checkpoint = _checkpoint_path(given, config) if given else None
    directory = _model_directory(config, checkpoint)
    if random_weights:
        return directory, None
    checkpoint = checkpoint or directory
    if checkpoint is None:
        raise ModelNotFoundError(
            "no checkpoint is given",
            "give --load_checkpoint a model directory, a .safetensors, .gguf or .ckpt file, or try the config out with "
            "--random_weights True",
        )
    return directory, checkpoint


def _model_directory(config: InferenceConfig, checkpoint: Path | None) -> Path | None:
    """Returns the directory of the model's files: that of the weights if it has a config.json, else the YAML's.

    For a GGUF file, returns its own path, because it is a whole model.
    """
    if checkpoint is not None and is_gguf(checkpoint):
        return checkpoint
    if checkpoint is not None and is_file(_directory_of(checkpoint) / CONFIG_FILE):
        return _directory_of(checkpoint)
    directory = locate_model(config.pretrained_model_dir, config=config) if config.pretrained_model_dir else None
    if directory is not None and checkpoint is not None and is_gguf(directory):
        raise ConfigError(
            f"{directory} is a whole model, and {checkpoint} another's weights",
            "leave out pretrained_model_dir or load_checkpoint",
        )
    return directory


def _checkpoint_path(given: str, config: InferenceConfig) -> Path:
    path = Path(given).expanduser()
    if exists(path):
        if not path.is_dir():
            check_regular(path)
        return path
    if path.suffix in (".ckpt", ".safetensors", ".json", GGUF_SUFFIX):
        close = nearest_model(path)
        hint = f"did you mean '{close}'?" if close else "give a file or a directory that does"
        raise ModelNotFoundError(f"the checkpoint {given} does not exist", hint)
    return locate_model(given, config=config)


def is_gguf(path: Path) -> bool:
    """Whether the path is a GGUF file, which is a whole model: sizes, weights and tokenizer."""
    return path.suffix == GGUF_SUFFIX and is_file(path)


def _directory_of(checkpoint: Path) -> Path:
    return checkpoint if checkpoint.is_dir() else checkpoint.parent


def _architecture(config: InferenceConfig, directory: Path | None) -> tuple[dict[str, Any], str]:
    """Returns the keys of config.json, overridden by those of the YAML, and the name of their source for errors."""
    given = config.model.model_config.given_architecture()
    if directory and is_gguf(directory):
        own = read_gguf_config(directory)
        return lay_over(own, given), f"{directory} and {_yaml_name(config)}" if given else str(directory)
    path = directory / CONFIG_FILE if directory else None
    if path is None or not exists(path):
        if not given:
            place = f"{directory} holds no {CONFIG_FILE}" if directory else "the config has no model.model_config"
            raise ConfigError(
                f"{place}, so the model's sizes are unknown",
                f"give a model's directory that holds {CONFIG_FILE}, or the sizes in the YAML's model.model_config",
            )
        return given, _yaml_name(config)
    own = read_json_object(path)
    return lay_over(own, given), f"{path} and {_yaml_name(config)}" if given else str(path)


def _config_class(config: InferenceConfig) -> str | None:
    """Returns MindFormers' config class, if nothing else names the architecture."""
    model = config.model.model_config
    return None if config.model.arch.type or model.architectures or model.model_type else model.type


def _yaml_name(config: InferenceConfig) -> str:
    return config.sources[-1] if config.sources else "model.model_config"


def _name(config: InferenceConfig, directory: Path | None) -> str:
    if config.trainer.model_name:
        return config.trainer.model_name
    given = config.pretrained_model_dir
    if given and is_preset(given):
        return given
    return directory.resolve().name if directory else "model"
