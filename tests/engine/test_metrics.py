"""A metric is one field: JSON, the closing lines, and the sums over replicas derive from it."""

from __future__ import annotations

import json
from dataclasses import fields

from inference.engine.metrics import REQUEST, RUN, STEP, RunMetrics, names_counted_by
from inference.engine.percentiles import Percentiles
from inference.terminal.output import summary


def filled(value: int) -> RunMetrics:
    """Every metric that replicas share has a value."""
    metrics = RunMetrics()
    for name in names_counted_by(REQUEST, STEP):
        if isinstance(getattr(metrics, name), Percentiles):
            getattr(metrics, name).add(value)
        else:
            setattr(metrics, name, value)
    return metrics


def test_every_metric_states_who_counts_it() -> None:
    assert {item.metadata["counted_by"] for item in fields(RunMetrics)} == {REQUEST, STEP, RUN}


def test_every_metric_is_in_json() -> None:
    made = filled(3).as_dict()
    assert {item.name for item in fields(RunMetrics)} < set(made)
    assert json.loads(json.dumps(made)) == made


def test_every_metric_adds_up_over_replicas() -> None:
    one = filled(3)
    one.add_replica(filled(4))
    for name in names_counted_by(REQUEST, STEP):
        value = getattr(one, name)
        if isinstance(value, Percentiles):
            assert (value.count, value.greatest) == (2, 4), name
        elif not name.endswith("_seconds"):
            assert value == 7, name


def test_a_replica_sends_the_counts_of_its_engine() -> None:
    sent = json.loads(json.dumps(filled(5).step_figures()))
    assert set(sent) == set(names_counted_by(STEP))
    received = RunMetrics()
    received.take_step_figures(sent)
    assert received.step_figures() == filled(5).step_figures()


def test_notes_are_in_the_closing_line() -> None:
    said = summary(filled(1234), None)
    assert "1,234 tokens from the prefix cache" in said and "1,234 preempted" in said
    assert "preempted" not in summary(RunMetrics(requests=1), None)
