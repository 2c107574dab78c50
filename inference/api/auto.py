"""AutoConfig, AutoTokenizer, AutoModel: MindFormers' factories.

The name of a model is a preset (`llama2_7b`), a YAML file, a Hugging Face directory or a repository id.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inference.api.backend import choose_model_class
from inference.config import GenerationConfig, InferenceConfig, Override, load_config, override_config
from inference.config.flags import OTHER_NAMES
from inference.config.locate import locate_model
from inference.config.model_settings import ModelSettings
from inference.config.presets import find_preset, is_preset, list_presets
from inference.config.schema import EngineSettings
from inference.context import build_context, ranks_told
from inference.errors import ConfigError, did_you_mean
from inference.generation.model import GenerativeModel, check_no_fork
from inference.generation.ranks import load
from inference.terminal.output import say
from inference.tokenizer import Tokenizer, load_tokenizer

# Keys that a caller may set besides those of the model and of generation, and their paths in a config.
_ELSEWHERE = {
    "checkpoint_name_or_path": "load_checkpoint",
    "load_checkpoint": "load_checkpoint",
    "random_weights": "engine.random_weights",
    "predict_batch_size": "predict_batch_size",
    "seed": "seed",
    "device_target": "context.device_target",
    # Other libraries' names; in a model's config.json they only say how the weights are stored.
    "dtype": "engine.weight_dtype",
    "torch_dtype": "engine.weight_dtype",
    "use_parallel": "use_parallel",
    "model_parallel": "parallel_config.model_parallel",
    "data_parallel": "parallel_config.data_parallel",
}
YAML_SUFFIXES = (".yaml", ".yml")


class AutoConfig:
    """A model's config, whose keys can be changed before a model is built from it.

    `config.use_past = False` sets a key of `model.model_config`; `config.num_layers` reads one. Setting an unknown key
    is an error.
    """

    def __init__(self, config: InferenceConfig):
        object.__setattr__(self, "_config", config)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **settings: Any) -> AutoConfig:
        """Loads the config of a preset, a YAML file, a directory or a Hugging Face repository.

        Raises:
            ModelNotFoundError: there is no model of this name.
            ConfigError: a setting is unknown.
        """
        config = cls(_config_of(str(name_or_path)))
        for key, value in settings.items():
            setattr(config, key, value)
        return config

    @staticmethod
    def show_support_list() -> list[str]:
        """Returns the names of the presets."""
        return [preset.name for preset in list_presets()]

    @property
    def inference_config(self) -> InferenceConfig:
        """The whole config, frozen."""
        return self._config

    def __getattr__(self, key: str) -> Any:
        config: InferenceConfig = object.__getattribute__(self, "_config")
        # Some keys are in both sections; `generation()` merges them.
        if key in GenerationConfig.model_fields:
            return getattr(config.generation(), key)
        if key in ModelSettings.model_fields:
            return getattr(config.model.model_config, key)
        raise AttributeError(f"a model's config has no '{key}'")

    def __setattr__(self, key: str, value: Any) -> None:
        changed = override_config(self._config, [Override(_path_of(key), value, key)])
        object.__setattr__(self, "_config", changed)


class AutoTokenizer:
    """The tokenizer of a named model."""

    @staticmethod
    def from_pretrained(name_or_path: str | Path, **settings: Any) -> Tokenizer:
        """Loads a tokenizer.

        Args:
            name_or_path: a preset, a YAML file, a directory or a Hugging Face repository id.
            settings: keys of tokenizer_config.json; they override the file's.
        """
        name = str(name_or_path)
        if not (name.endswith(YAML_SUFFIXES) or is_preset(name)):
            return load_tokenizer(locate_model(name), settings=settings)
        config = _config_of(name)
        given = config.processor.tokenizer.model_dump(exclude_unset=True, exclude_none=True)
        named = given.get("vocab_file") or given.get("tokenizer_file")
        model = config.pretrained_model_dir or config.load_checkpoint or name
        return load_tokenizer(None if named else locate_model(model, config=config), settings={**given, **settings})


class AutoModel:
    """A named model, loaded and compiled."""

    @staticmethod
    def from_pretrained(name_or_path: str | Path, **settings: Any) -> GenerativeModel:
        """Loads a model and its weights.

        Args:
            name_or_path: a preset, a YAML file, a directory or a Hugging Face repository id.
            settings: `checkpoint_name_or_path`, keys of `model.model_config` such as use_past, and, for a program
                started by msrun, `use_parallel` and `model_parallel`.

        Raises:
            SystemExit: on all ranks but the first, once the first has closed the model.
        """
        return AutoModel.from_config(AutoConfig.from_pretrained(name_or_path, **settings))

    @staticmethod
    def from_config(config: AutoConfig | InferenceConfig | str | Path, **settings: Any) -> GenerativeModel:
        """Builds the model of a config or a YAML file. Weights are random only if `random_weights=True` is given."""
        if isinstance(config, InferenceConfig):
            config = AutoConfig(config)
        if not isinstance(config, AutoConfig):
            config = AutoConfig.from_pretrained(config)
        for key, value in settings.items():
            setattr(config, key, value)
        check_no_fork()
        whole = _with_ranks(config.inference_config)
        build_context(whole)
        return load(choose_model_class(whole), whole, say)


def _with_ranks(config: InferenceConfig) -> InferenceConfig:
    """Adds the parallel settings given to `build_context`, unless the caller has set them for this model."""
    told = ranks_told()
    if not told or config.use_parallel or config.origin("use_parallel") == "use_parallel":
        return config
    return override_config(config, [Override(path, value, f"build_context, {path}") for path, value in told.items()])


def _config_of(name: str) -> InferenceConfig:
    if name.endswith(YAML_SUFFIXES):
        return load_config(name)
    if is_preset(name):
        return load_config(find_preset(name))
    return load_config({"pretrained_model_dir": str(locate_model(name))})


def _path_of(key: str) -> str:
    if key in _ELSEWHERE:
        return _ELSEWHERE[key]
    if key in ModelSettings.model_fields:
        return f"model.model_config.{key}"
    if key in GenerationConfig.model_fields:
        return f"generation_config.{key}"
    if key in EngineSettings.model_fields:
        return f"engine.{key}"
    known = [*_ELSEWHERE, *EngineSettings.model_fields, *ModelSettings.model_fields, *GenerationConfig.model_fields]
    other = OTHER_NAMES.get(key, "").removeprefix("--")
    hint = f"did you mean '{other}'?" if other in known else did_you_mean(key, known)
    raise ConfigError(f"a model's config has no '{key}'", hint)
