"""Validates a replacement model against the thresholds of an evaluation.

Knows records and scores; `hot_swap` decides when a model is validated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inference.beam.serving.hot_swap import Trial
from inference.errors import ConfigError
from inference.evaluate.answers import Answered
from inference.evaluate.examples import Example
from inference.evaluate.gate import Gate, check_gate
from inference.evaluate.result import Evaluation, Sampling
from inference.evaluate.scores import choose_metrics

# No confidence intervals are needed here.
ONE = Sampling(samples=1)


def trial_of(examples: Sequence[Example], gate: Gate) -> Trial:
    """Make a validation from thresholds on the model's answers.

    Args:
        examples: the examples, as `read_examples` returns them.

    Raises:
        ConfigError: a threshold does not apply here: perplexity is not measured, and there is no second model.
    """
    gate.check_names(sorted({name for example in examples for name in example.slices}))
    if gate.max_drop or "perplexity" in gate.metric_names():
        raise ConfigError("a validation has neither perplexity nor max_drop", "give thresholds for the answers")
    choose_metrics(sorted(gate.metric_names()), print)
    return Trial([example.prompt for example in examples], Judge(tuple(examples), gate))


@dataclass(frozen=True)
class Judge:
    """Takes the records of a model's answers; returns the thresholds that they miss, or None."""

    examples: Sequence[Example]
    gate: Gate

    def __call__(self, records: list[dict[str, Any]]) -> str | None:
        rows = [_answered(example, record) for example, record in zip(self.examples, records, strict=True)]
        metrics = choose_metrics(sorted(self.gate.metric_names()), print)
        verdicts = check_gate(Evaluation("the new model", rows, metrics, ONE), self.gate)
        broken = [str(verdict) for verdict in verdicts if not verdict.passed]
        return f"missed thresholds: {'; '.join(broken)}" if broken else None


def _answered(example: Example, record: Mapping[str, Any]) -> Answered:
    return Answered(
        example.prompt.custom_id,
        example.slices,
        example.prompt.text or "",
        example.references,
        record["text"] or "",
        None if record["error"] is None else str(record["error"]["message"]),
        total_seconds=record["total_seconds"],
        ttft_seconds=record["ttft_seconds"],
    )
