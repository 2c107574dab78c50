"""Answers batches that are columns of a table, as the workers of Ray Data and Spark get them.

Knows columns and records; knows no data engine. A row that cannot be answered has the reason in the column `error`, so
the engine never retries a batch because of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
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


class ColumnAnswerer:
    """Answers batches of columns with one model, which it loads with the first batch.

    Args:
        config: of the model.
        settings: generation settings for all rows.
        prompt_column: name of the column with the prompts.

    Raises:
        ConfigError: a setting is unknown or impossible.
    """

    def __init__(
        self, config: InferenceConfig, settings: Mapping[str, Any] | None = None, prompt_column: str = "prompt"
    ):
        check_settings(settings)
        self.config = config
        self._settings, self._column = dict(settings or {}), prompt_column
        self._model: LoadedModel | None = None

    def answer(self, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Return the columns of `ANSWER` for a batch, row by row in its order.

        Raises:
            InputError: there is no column of prompts, or the batch already has a column that would be added.
        """
        self.check(batch)
        examples = self._examples(batch)
        if self._model is None:
            self._model = loaded_model(self.config, resolve(self.config).name)
        records = self._model.answer(examples, self._settings).records
        return {name: _column([_value(record, name) for record in records]) for name in ANSWER}

    def check(self, columns: Sequence[str] | Mapping[str, Any]) -> None:
        """Check the names of the columns.

        Raises:
            InputError: there is no column of prompts, or a column that would be added is already there.
        """
        taken = sorted(set(columns) & set(ANSWER))
        if taken:
            raise InputError(f"the dataset already has a column '{taken[0]}'", "rename or drop it")
        if self._column not in columns and "messages" not in columns:
            known = ", ".join(columns) or "none"
            raise InputError(f"the dataset has no column '{self._column}' and no column 'messages'", f"known: {known}")

    def asked(self, columns: Sequence[str] | Mapping[str, Any]) -> dict[str, str]:
        """Return which columns make up a prompt, by what they are."""
        names = {name: self._column if name == "prompt" else name for name in ASKED}
        return {name: column for name, column in names.items() if column in columns}

    def _examples(self, batch: Mapping[str, Any]) -> list[dict[str, Any]]:
        columns = {name: batch[column] for name, column in self.asked(batch).items()}
        rows = zip(*columns.values(), strict=True)
        return [_given({name: _plain(value) for name, value in zip(columns, row, strict=True)}) for row in rows]


def config_of(config: str | Path | Mapping[str, Any]) -> InferenceConfig:
    """Read a config: a preset's name, a directory, a YAML file, a Hugging Face repository, or a mapping.

    Raises:
        InferenceError: there is none, or it is not valid.
    """
    if isinstance(config, Mapping):
        return load_config(config)
    if not isinstance(config, (str, Path)):
        raise ConfigError(f"config is {type(config).__name__}", "give a path, a preset's name, or a mapping")
    return AutoConfig.from_pretrained(config).inference_config


def with_threads(config: InferenceConfig, cpus: int, where: str) -> InferenceConfig:
    """Set the config's threads to a worker's CPUs, unless it sets them itself or `cpus` is 0.

    Args:
        where: who gave the CPUs, for `--print_config` and errors.
    """
    if cpus < 1 or config.origin("engine.threads") != "default":
        return config
    return override_config(config, [Override("engine.threads", cpus, where)])


def _given(row: Mapping[str, Any]) -> dict[str, Any]:
    """Drop what is missing: a row of a table with both columns has `prompt` or `messages`."""
    return {name: value for name, value in row.items() if value is not None}


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
    """Convert a value of a column to JSON types."""
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value]
    if hasattr(value, "asDict"):  # Spark's Row, which is a tuple
        value = value.asDict()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value.item() if isinstance(value, np.generic) else value
