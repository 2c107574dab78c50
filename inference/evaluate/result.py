"""The figures of an evaluation: scores with intervals, for all rows and each slice, and compared with another model.

They can be written as JSON and read back, so that a later evaluation can be compared with them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from inference.engine.percentiles import Percentiles
from inference.errors import InputError
from inference.evaluate.answers import Answered
from inference.evaluate.bootstrap import Difference, Interval, difference, interval
from inference.evaluate.scores import Metric

FORMAT = "mindspore-inference evaluation 1"
ALL = "all"
Scores = dict[str, dict[str, Interval]]
Differences = dict[str, dict[str, Difference]]


@dataclass(frozen=True)
class Sampling:
    """How to compute intervals: each contains the share `confidence` of `samples` resamplings."""

    samples: int = 1000
    confidence: float = 0.95
    seed: int = 0


@dataclass
class Comparison:
    """Another model on the same rows; `differences` are the first model's scores minus the other's."""

    model: str
    scores: Scores
    differences: Differences
    rows: list[Answered]


@dataclass
class Evaluation:
    """The result of evaluating a model.

    Attributes:
        scores: scores by slice (`all` first) and metric.
    """

    model: str
    rows: list[Answered]
    metrics: Sequence[Metric]
    sampling: Sampling
    settings: Mapping[str, Any] = field(default_factory=dict)
    scores: Scores = field(default_factory=dict)
    comparison: Comparison | None = None

    def __post_init__(self) -> None:
        self._statistics = {metric.name: metric.statistics(self.rows) for metric in self.metrics}
        self.scores = self._per_slice(
            lambda metric, chosen: interval(self._statistics[metric.name][chosen], metric.value, *_how(self.sampling))
        )

    @property
    def num_failed(self) -> int:
        """Number of rows without an answer."""
        return sum(row.error is not None for row in self.rows)

    @property
    def slices(self) -> list[str]:
        """`all`, then the slices sorted by name."""
        return [ALL, *sorted({name for row in self.rows for name in row.slices})]

    def slice_rows(self, name: str) -> np.ndarray:
        """The indices of a slice's rows."""
        return np.array([i for i, row in enumerate(self.rows) if name == ALL or name in row.slices], np.int64)

    def row_scores(self, row: int) -> dict[str, float]:
        """The scores of one row."""
        return {metric.name: metric.value(self._statistics[metric.name][row]) for metric in self.metrics}

    def latencies(self) -> dict[str, dict[str, float | None]]:
        """Percentiles of the answers' times, seconds."""
        return latencies(self.rows)

    def rows_of(self, examples: Sequence[tuple[str, tuple[str, ...]]]) -> list[Answered]:
        """The rows of examples, given as names and references.

        Raises:
            InputError: this evaluation used different examples.
        """
        same = "compare models on the same rows"
        rows = {row.custom_id: row for row in self.rows}
        for name, references in examples:
            if name not in rows:
                raise InputError(f"{self.model} was not evaluated on row {name}", same)
            if rows[name].references != references:
                raise InputError(f"{self.model} was evaluated on other references of row {name}", same)
        extra = rows.keys() - {name for name, _ in examples}
        if extra:
            raise InputError(f"{self.model} was evaluated on more rows, such as {min(extra)}", same)
        return [rows[name] for name, _ in examples]

    def compare(self, other: Evaluation) -> Comparison:
        """Compare with another model's evaluation on the same examples.

        Raises:
            InputError: the other evaluation used different examples.
        """
        rows = other.rows_of([(row.custom_id, row.references) for row in self.rows])
        theirs = {metric.name: metric.statistics(rows) for metric in self.metrics}
        scores = self._per_slice(
            lambda metric, chosen: interval(theirs[metric.name][chosen], metric.value, *_how(self.sampling))
        )
        differences = self._per_slice(
            lambda metric, chosen: difference(
                self._statistics[metric.name][chosen],
                theirs[metric.name][chosen],
                metric.value,
                *_how(self.sampling),
            )
        )
        self.comparison = Comparison(other.model, scores, differences, rows)
        return self.comparison

    def _per_slice(self, measure: Callable[[Metric, np.ndarray], Any]) -> dict[str, dict[str, Any]]:
        return {
            name: {metric.name: measure(metric, self.slice_rows(name)) for metric in self.metrics}
            for name in self.slices
        }

    def as_dict(self) -> dict[str, Any]:
        """All figures as JSON values; NaN becomes None."""
        values: dict[str, Any] = {
            "format": FORMAT,
            "model": self.model,
            **self.settings,
            "rows": len(self.rows),
            "failed": self.num_failed,
            "bootstrap": asdict(self.sampling),
            "scores": _plain(self.scores),
            "latency": self.latencies(),
        }
        if self.comparison is not None:
            other = self.comparison
            values["compared_with"] = {
                "model": other.model,
                "scores": _plain(other.scores),
                "differences": _plain(other.differences),
            }
        answers = [{**row.as_dict(), "scores": _finite(self.row_scores(index))} for index, row in enumerate(self.rows)]
        return {**values, "answers": answers}


def read_evaluation(path: Path, metrics: Sequence[Metric], sampling: Sampling) -> Evaluation:
    """Read an evaluation from its JSON; scores are recomputed from the answers.

    Raises:
        InputError: the file cannot be read, or is not the result of an evaluation.
    """
    try:
        values = json.loads(path.read_bytes())
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise ValueError(f"its format is not '{FORMAT}'")
        rows = [Answered.from_dict({k: v for k, v in row.items() if k != "scores"}) for row in values["answers"]]
        return Evaluation(str(values["model"]), rows, metrics, sampling)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path} is not the result of an evaluation ({error})", "give a file that --result_file wrote"
        ) from error


def latencies(rows: Sequence[Answered]) -> dict[str, dict[str, float | None]]:
    """Percentiles of the answers' times, seconds."""
    times = {"ttft_seconds": Percentiles(), "total_seconds": Percentiles()}
    for row in rows:
        for name, percentiles in times.items():
            if (seconds := getattr(row, name)) is not None:
                percentiles.add(seconds)
    return {name: percentiles.as_dict() for name, percentiles in times.items()}


def _how(sampling: Sampling) -> tuple[int, float, int]:
    return sampling.samples, sampling.confidence, sampling.seed


def _plain(scores: Mapping[str, Mapping[str, Interval]]) -> dict[str, Any]:
    return {
        name: {metric: _finite(asdict(score)) for metric, score in values.items()} for name, values in scores.items()
    }


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {key: value if math.isfinite(value) else None for key, value in values.items()}
