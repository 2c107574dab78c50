"""`AnswerBatches`: the class that Ray Data's `map_batches` runs in its actors.

Knows Ray's resources; `answering.columns` answers the rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inference.answering.columns import ColumnAnswerer, config_of, with_threads


class AnswerBatches:
    """Answers the rows of a batch.

    Adds the columns `text`, `finish_reason`, `prompt_tokens`, `completion_tokens`, `total_seconds`, `model`
    and `error`.

    A row needs a column `prompt` or `messages`. If a row has no answer, `error` holds the reason and `text` is empty;
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
        own = with_threads(config_of(config), assigned_cpus(), "Ray's CPUs")
        self._answerer = ColumnAnswerer(own, settings, prompt_column)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Answer a batch, a mapping of columns. Keep the order and number of rows.

        Raises:
            InputError: there is no column of prompts, or the batch already has a column that would be added.
        """
        return {**batch, **self._answerer.answer(batch)}

    @property
    def threads(self) -> int | None:
        """Number of threads that the model uses; None for all CPUs."""
        return self._answerer.config.engine.threads


def assigned_cpus() -> int:
    """Return the CPUs that Ray has given to this worker; 0 outside Ray."""
    import ray

    if not ray.is_initialized():
        return 0
    return int(ray.get_runtime_context().get_assigned_resources().get("CPU", 0))
