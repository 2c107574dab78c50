"""`AnswerBatches`: the class that Ray Data's `map_batches` runs in its actors.

Knows Ray's batches; `answering` answers the rows.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from inference.answering.shared_model import LoadedModel, check_settings, loaded_model
from inference.api.auto import AutoConfig
from inference.config import InferenceConfig, Override, load_config, override_config
from inference.errors import ConfigError, InputError
from inference.models.source import resolve

# Columns of an answer, and their values for a row without an answer.
ANSWER: dict[str, Any] = {
    "text": None,
    "finish_reason": "error",
    "prompt_tokens": 0,
    "completion_tokens": 0,
    "total_seconds": float("nan"),
    "model": "",
    "error": None,
}
# Columns of a row that make up its prompt.
ASKED = ("prompt", "messages", "custom_id")


class AnswerBatches:
    """Answers the rows of a batch.

    Adds the columns `text`, `finish_reason`, `prompt_tokens`, `completion_tokens`, `total_seconds`, `model`
    and `error`.

    A row needs a column `prompt` or `messages`. A row that cannot be answered gets the reason in `error` and no text;
    it raises no exception, so Ray does not retry the batch. Each actor loads the model once and uses as many threads as
    Ray has given it CPUs. The weights of a converted directory are memory-mapped, so the actors of a machine share
    them.

    Args:
        config: a preset's name, a directory, a YAML file, a Hugging Face repository, or a mapping of a config's
            sections.
        settings: generation settings for all rows.
        prompt_column: name of the column with the prompts, if it is not `prompt`.

    Raises:
        ConfigError: a setting is unknown or impossible.
        ModelNotFoundError: the model cannot be found.
    """

    def __init__(
        self, config: str | Mapping[str, Any], settings: Mapping[str, Any] | None = None, prompt_column: str = "prompt"
    ):
        check_settings(settings)
        self._settings, self._column = dict(settings or {}), prompt_column
        self._config = _with_threads(_config_of(config))
        self._model: LoadedModel | None = None

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Answer a batch, a mapping of columns. Keep the order and number of rows.

        Raises:
            InputError: there is no column of prompts, or the batch already has a column that would be added.
        """
        taken = sorted(set(batch) & set(ANSWER))
        if taken:
            raise InputError(f"the dataset already has a column '{taken[0]}'", "rename or drop it")
        examples = self._examples(batch)
        if self._model is None:
            self._model = loaded_model(self._config, resolve(self._config).name)
        records = self._model.answer(examples, self._settings).records
        answers = {name: _column([_value(record, name) for record in records]) for name in ANSWER}
        return {**batch, **answers}

    def _examples(self, batch: Mapping[str, Any]) -> list[dict[str, Any]]:
        columns = {name: batch[self._column if name == "prompt" else name] for name in ASKED if self._has(batch, name)}
        if not columns.keys() & {"prompt", "messages"}:
            known = ", ".join(batch) or "none"
            raise InputError(f"the dataset has no column '{self._column}' and no column 'messages'", f"known: {known}")
        rows = zip(*columns.values(), strict=True)
        return [{name: _plain(value) for name, value in zip(columns, row, strict=True)} for row in rows]

    def _has(self, batch: Mapping[str, Any], name: str) -> bool:
        return (self._column if name == "prompt" else name) in batch


def _config_of(config: str | Mapping[str, Any]) -> InferenceConfig:
    if isinstance(config, Mapping):
        return load_config(config)
    if not isinstance(config, (str, os.PathLike)):
        raise ConfigError(f"config is {type(config).__name__}", "give a path, a preset's name, or a mapping")
    return AutoConfig.from_pretrained(config).inference_config


def _with_threads(config: InferenceConfig) -> InferenceConfig:
    """Set the config's threads to the CPUs of this actor, unless it sets them itself; outside Ray, change nothing."""
    import ray

    if config.origin("engine.threads") != "default" or not ray.is_initialized():
        return config
    cpus = int(ray.get_runtime_context().get_assigned_resources().get("CPU", 0))
    return override_config(config, [Override("engine.threads", cpus, "Ray's CPUs")]) if cpus else config


def _value(record: Mapping[str, Any], name: str) -> Any:
    value = record[name]
    if name == "error":
        return None if value is None else f"{value['type']}: {value['message']}"
    return ANSWER[name] if value is None else value


def _column(values: Sequence[Any]) -> np.ndarray:
    """Make a column; texts, which may be missing, stay Python objects."""
    has_text = any(isinstance(value, str) or value is None for value in values)
    return np.array(values, dtype=object) if has_text else np.array(values)


def _plain(value: Any) -> Any:
    """Convert a value from Ray to JSON types."""
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value.item() if isinstance(value, np.generic) else value
