"""The config layer: turns YAML files, presets and overrides into one frozen, validated config.

Imports neither MindSpore nor anything that imports it.
"""

from inference.config.generation import (
    GENERATION_FILE,
    GenerationConfig,
    GenerationSettings,
    ignored_settings,
    merge_generation_config,
    read_generation_file,
    settings_from_model,
)
from inference.config.load import load_config, override_config
from inference.config.overrides import Override, parse_override, parse_value
from inference.config.schema import InferenceConfig

__all__ = [
    "GENERATION_FILE",
    "GenerationConfig",
    "GenerationSettings",
    "InferenceConfig",
    "Override",
    "load_config",
    "merge_generation_config",
    "override_config",
    "parse_override",
    "parse_value",
    "ignored_settings",
    "read_generation_file",
    "settings_from_model",
]
