"""`answer`: adds the columns of an answer to a Spark DataFrame.

Knows Spark's DataFrames and task resources; `answering.columns` answers the rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from inference.answering.columns import ANSWER, ColumnAnswerer, config_of, with_threads
from inference.errors import InputError

if TYPE_CHECKING:
    import pandas
    from pyspark.sql import DataFrame

# Types of the columns in `ANSWER`.
TYPES = {"prompt_tokens": "bigint", "completion_tokens": "bigint", "total_seconds": "double"}
# Spark's own setting for the number of rows in a batch, and its default.
BATCH_ROWS = "spark.sql.execution.arrow.maxRecordsPerBatch"


def answer(
    dataframe: DataFrame,
    config: str | Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
    prompt_column: str = "prompt",
) -> DataFrame:
    """Return a DataFrame with the same rows and the columns `text`, `finish_reason`, `prompt_tokens`,
    `completion_tokens`, `total_seconds`, `model` and `error`.

    A row needs a column `prompt` or `messages`. If a row has no answer, `error` holds the reason and `text` is empty;
    it raises no exception, so Spark does not retry its task. Each Python worker of an executor loads the model once and
    computes with `spark.task.cpus` threads, unless the config sets `engine.threads`. Like every transformation, this
    one runs when an action asks for rows, and again for each action: write the answers, or cache them.

    Args:
        config: a preset's name, a directory, a YAML file, a Hugging Face repository, or a mapping of a config's
            sections. Every executor must find it, and the model that it names.
        settings: generation settings for all rows.
        prompt_column: name of the column with the prompts, if it is not `prompt`.

    Raises:
        ConfigError: a setting is unknown or impossible.
        InputError: there is no column of prompts, or a column that would be added already exists.
        ModelNotFoundError: the model cannot be found.
    """
    from pyspark.sql.types import StructType

    answerer = ColumnAnswerer(config_of(config), settings, prompt_column)
    answerer.check(dataframe.columns)
    repeated = {name for name in dataframe.columns if dataframe.columns.count(name) > 1}
    if repeated:
        raise InputError(f"the dataset has two columns '{min(repeated)}'", "rename one")
    added = ", ".join(f"{name} {TYPES.get(name, 'string')}" for name in ANSWER)
    schema = StructType([*dataframe.schema.fields, *StructType.fromDDL(added).fields])
    return dataframe.mapInPandas(_answering(config, dict(settings or {}), prompt_column), schema)


def _answering(
    config: str | Mapping[str, Any], settings: Mapping[str, Any], prompt_column: str
) -> Callable[[Iterator[pandas.DataFrame]], Iterator[pandas.DataFrame]]:
    """Return the function that Spark runs on a partition; it is sent to the executors."""

    def answered(batches: Iterator[pandas.DataFrame]) -> Iterator[pandas.DataFrame]:
        answerer = _answerer(config, settings, prompt_column)
        for batch in batches:
            columns = {name: batch[name].tolist() for name in batch.columns}
            # Do not use numpy columns: they would turn missing texts and numbers into NaN.
            yield batch.assign(**{name: column.tolist() for name, column in answerer.answer(columns).items()})

    return answered


def _answerer(config: str | Mapping[str, Any], settings: Mapping[str, Any], prompt_column: str) -> ColumnAnswerer:
    """Return this worker's answerer. It is cached, because Spark uses a Python worker for many tasks."""
    key = json.dumps([config, settings, prompt_column], sort_keys=True, default=str)
    if key not in _answerers:
        own = with_threads(config_of(config), task_cpus(), "spark.task.cpus")
        _answerers[key] = ColumnAnswerer(own, settings, prompt_column)
    return _answerers[key]


_answerers: dict[str, ColumnAnswerer] = {}


def task_cpus() -> int:
    """Return the CPUs that Spark has given to this task; 0 outside a task."""
    from pyspark import TaskContext

    task = TaskContext.get()
    return 0 if task is None else int(task.cpus())
