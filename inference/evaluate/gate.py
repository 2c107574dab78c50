"""Thresholds that an evaluation must meet.

A score is named by its metric (`exact_match`) or by metric and slice (`exact_match@sum`). Other names are `failed`, the
number of failed rows, and the percentiles `latency_p50`, `latency_p90`, `latency_p99`, `ttft_p50`,
`ttft_p90`, `ttft_p99`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from inference.errors import ConfigError, did_you_mean
from inference.evaluate.result import ALL, Evaluation
from inference.evaluate.scores import METRICS, Metric

_PERCENTILES = {"latency": "total_seconds", "ttft": "ttft_seconds"}
TIMES = tuple(f"{name}_p{percent}" for name in _PERCENTILES for percent in (50, 90, 99))
OTHERS = ("failed", *TIMES)


@dataclass(frozen=True)
class Gate:
    """Thresholds by the name of the score.

    Args:
        at_least: lower bounds of scores.
        at_most: upper bounds of scores.
        max_drop: how much worse than the other model a score may be, in whichever direction is worse. The drop is
            measured at the better bound of the difference's interval, so that only a significant drop fails.
    """

    at_least: Mapping[str, float] = field(default_factory=dict)
    at_most: Mapping[str, float] = field(default_factory=dict)
    max_drop: Mapping[str, float] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.at_least or self.at_most or self.max_drop)

    def metric_names(self) -> set[str]:
        """The metrics that the thresholds need."""
        return {name.partition("@")[0] for name in self._names()} & set(METRICS)

    def check_names(self, slices: Iterable[str] | None = None) -> None:
        """Check the names of scores and slices, before anything is computed.

        Args:
            slices: the existing slices; None if unknown.

        Raises:
            ConfigError: a score or slice is unknown.
        """
        for name in self._names():
            metric, _, part = name.partition("@")
            known = METRICS if part or name in self.max_drop else (*METRICS, *OTHERS)
            if metric not in known:
                hint = did_you_mean(metric, known) or f"known: {', '.join(known)}"
                raise ConfigError(f"a threshold names the unknown score '{name}'", hint)
            if part and slices is not None and part not in slices:
                hint = did_you_mean(part, slices) or f"slices of these rows: {', '.join(slices) or 'none'}"
                raise ConfigError(f"a threshold names '{name}', but no row is in that slice", hint)

    def _names(self) -> list[str]:
        return [*self.at_least, *self.at_most, *self.max_drop]


@dataclass(frozen=True)
class Verdict:
    """One threshold and whether it was met."""

    threshold: str
    value: float
    passed: bool

    def __str__(self) -> str:
        return f"{self.threshold}: {round(self.value, 4) + 0.0:.4f}"  # avoids -0.0000


def check_gate(evaluation: Evaluation, gate: Gate) -> list[Verdict]:
    """Check all thresholds. A NaN score meets none.

    Raises:
        ConfigError: a name is unknown, or `max_drop` is given without another model.
    """
    gate.check_names([name for name in evaluation.slices if name != ALL])
    verdicts = [_verdict(evaluation, name, low, ">=") for name, low in gate.at_least.items()]
    verdicts += [_verdict(evaluation, name, high, "<=") for name, high in gate.at_most.items()]
    if gate.max_drop and evaluation.comparison is None:
        raise ConfigError("max_drop compares two models, and there is one", "give --compare_with")
    return verdicts + [_drop(evaluation, name, most) for name, most in gate.max_drop.items()]


def score_named(evaluation: Evaluation, name: str) -> float:
    """The value of a score by its name; NaN if there is none."""
    if name == "failed":
        return float(evaluation.num_failed)
    if name in TIMES:
        kind, _, percentile = name.partition("_")
        value = evaluation.latencies()[_PERCENTILES[kind]][percentile]
        return math.nan if value is None else value
    metric, _, part = name.partition("@")
    return evaluation.scores[part or ALL][metric].value


def _verdict(evaluation: Evaluation, name: str, bound: float, sign: str) -> Verdict:
    value = score_named(evaluation, name)
    passed = value >= bound if sign == ">=" else value <= bound
    return Verdict(f"{name} {sign} {bound:g}", value, passed)


def _drop(evaluation: Evaluation, name: str, most: float) -> Verdict:
    assert evaluation.comparison is not None
    metric, _, part = name.partition("@")
    found = evaluation.comparison.differences[part or ALL][metric]
    drop = -found.high if _metric(evaluation, metric).higher_is_better else found.low
    return Verdict(f"{name} drops by at most {most:g}", drop, drop <= most)


def _metric(evaluation: Evaluation, name: str) -> Metric:
    return next(metric for metric in evaluation.metrics if metric.name == name)
