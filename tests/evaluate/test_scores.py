"""Scores and their intervals, held against other implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.evaluate.answers import Answered
from inference.evaluate.bootstrap import difference, interval
from inference.evaluate.scores import METRICS, normalized, token_f1

TEXTS = st.text(alphabet="ab cd,.T", max_size=12)


def answered(text: str, *references: str, name: str = "0", **more) -> Answered:
    return Answered(name, (), "prompt", references, text, **more)


def score(name: str, rows: list[Answered]) -> float:
    metric = METRICS[name]
    return metric.value(metric.statistics(rows).sum(axis=0))


def test_exact_match_ignores_only_spaces():
    rows = [answered(" a  b\n", "a b"), answered("A b", "a b"), answered("c", "a", "c"), answered("", "a")]
    assert score("exact_match", rows) == 0.5


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("The Eiffel Tower!", "eiffel tower", 1.0),
        ("in the tall tower", "tower", 2 * (1 / 3) / (1 + 1 / 3)),
        ("a b b", "b b b", 2 * 2 / 5),
        ("", "", 1.0),
        ("", "x", 0.0),
        ("yes", "no", 0.0),
    ],
)
def test_token_f1(one, other, expected):
    """Precision and recall by hand: articles and punctuation do not count, repeated words do."""
    assert token_f1(one, other) == pytest.approx(expected)


@given(TEXTS, TEXTS)
def test_token_f1_is_symmetric_and_bounded(one, other):
    assert token_f1(one, other) == token_f1(other, one)
    assert 0 <= token_f1(one, other) <= 1
    assert token_f1(one, one) == 1


@pytest.mark.parametrize("name", ["bleu", "chrf"])
def test_sums_of_rows_are_sacrebleus_corpus_score(name):
    sacrebleu = pytest.importorskip("sacrebleu")
    rows = [
        answered("the cat sat on the mat", "the cat sat on a mat", "a cat was on the mat"),
        answered("das große Haus ist rot", "das große Haus ist blau"),
        answered("something else entirely here", "nothing like it at all"),
        answered("", "an answer"),
    ]
    texts = [row.text for row in rows]
    columns = [[row.references[0] for row in rows], [rows[0].references[1], None, None, None]]
    whole = getattr(sacrebleu, f"corpus_{name}")(texts, columns).score
    assert 5 < score(name, rows) < 95
    assert score(name, rows) == pytest.approx(whole)


def test_perplexity_weighs_tokens_not_rows():
    rows = [answered("", "x", reference_nats=3.0, reference_tokens=3), answered("", "x", reference_nats=None)]
    rows += [answered("", "x", reference_nats=9.0, reference_tokens=1)]
    assert score("perplexity", rows) == pytest.approx(math.exp(12 / 4))
    assert math.isnan(score("perplexity", rows[1:2]))


def test_latency_is_the_mean_of_the_rows_that_have_one():
    assert score("latency", [answered("", "x", total_seconds=1.0), answered("", "x")]) == 1.0


def mean(total: np.ndarray) -> float:
    return float(total[0] / total[1])


def column(values) -> np.ndarray:
    return np.column_stack([values, np.ones(len(values))])


def test_the_interval_of_a_mean_is_that_of_statistics():
    """Of many rows it is the mean and 1.96 standard errors to both sides."""
    values = np.random.default_rng(1).normal(5, 2, 400)
    found = interval(column(values), mean, 4000, 0.95, 0)
    error = values.std() / math.sqrt(len(values))
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_rows_are_paired():
    """A small gain on every row is sure, however much the rows differ from one another."""
    values = np.random.default_rng(2).normal(0, 10, 50)
    found = difference(column(values + 0.1), column(values), mean, 500, 0.95, 0)
    assert found.value == pytest.approx(0.1)
    assert 0.09 < found.low <= found.high < 0.11
    assert found.better == 1.0
    other_way = difference(column(values), column(values + 0.1), mean, 500, 0.95, 0)
    assert (other_way.low, other_way.high) == (-found.high, -found.low)


def test_chance_is_chance():
    generator = np.random.default_rng(3)
    found = difference(column(generator.normal(0, 1, 200)), column(generator.normal(0, 1, 200)), mean, 500, 0.95, 0)
    assert found.low < 0 < found.high
    assert 0 < found.better < 1


def test_an_undefined_score_has_no_interval():
    found = interval(np.array([[0.0, 0.0]]), lambda total: math.nan, 10, 0.95, 0)
    assert math.isnan(found.value) and math.isnan(found.low) and math.isnan(found.high)


def test_normalized():
    assert normalized(" a\t b\n") == "a b"
