"""Thresholds that an evaluation has to keep: a gate that a model passes or does not.

A score is named by its metric, `exact_match`, of a slice `exact_match@sum`; and there are `failed`, the number of rows
without an answer, and the percentiles `latency_p50`, `latency_p90`, `latency_p99`, `ttft_p50`, `ttft_p90`, `ttft_p99`.
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
        at_least: scores that must be this or more.
        at_most: scores that must be this or less.
        max_drop: how much worse than the other model's a score may be, whichever way is worse; the near end of the
            interval of the difference counts, so that a drop has to be sure.
    """

    at_least: Mapping[str, float] = field(default_factory=dict)
    at_most: Mapping[str, float] = field(default_factory=dict)
    max_drop: Mapping[str, float] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.at_least or self.at_most or self.max_drop)

    def metric_names(self) -> set[str]:
        """The metrics that it needs."""
        return {name.partition("@")[0] for name in self._names()} & set(METRICS)

    def check_names(self, slices: Iterable[str] | None = None) -> None:
        """Refuses names that mean nothing, before anything is computed.

        Args:
            slices: those that there are; None where they are not known.

        Raises:
            ConfigError: an unknown score or slice.
        """
        for name in self._names():
            metric, _, part = name.partition("@")
            known = METRICS if part or name in self.max_drop else (*METRICS, *OTHERS)
            if metric not in known:
                hint = did_you_mean(metric, known) or f"known: {', '.join(known)}"
                raise ConfigError(f"a threshold is for '{name}', and there is no such score", hint)
            if part and slices is not None and part not in slices:
                hint = did_you_mean(part, slices) or f"slices of these rows: {', '.join(slices) or 'none'}"
                raise ConfigError(f"a threshold is for '{name}', and no row is in that slice", hint)

    def _names(self) -> list[str]:
        return [*self.at_least, *self.at_most, *self.max_drop]


@dataclass(frozen=True)
class Verdict:
    """One threshold and whether it was kept."""

    threshold: str
    value: float
    passed: bool

    def __str__(self) -> str:
        return f"{self.threshold}: {round(self.value, 4) + 0.0:.4f}"  # never -0.0000


def check_gate(evaluation: Evaluation, gate: Gate) -> list[Verdict]:
    """What became of each threshold. A score that is no number keeps none.

    Raises:
        ConfigError: a name that means nothing here, or `max_drop` without another model.
    """
    gate.check_names([name for name in evaluation.slices if name != ALL])
    verdicts = [_verdict(evaluation, name, low, ">=") for name, low in gate.at_least.items()]
    verdicts += [_verdict(evaluation, name, high, "<=") for name, high in gate.at_most.items()]
    if gate.max_drop and evaluation.comparison is None:
        raise ConfigError("max_drop compares two models, and there is one", "give --compare_with")
    return verdicts + [_drop(evaluation, name, most) for name, most in gate.max_drop.items()]


def score_named(evaluation: Evaluation, name: str) -> float:
    """The value of a score by its name, NaN where there is none."""
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
