"""Batches keep to rows, weights and lengths, and nothing gets lost."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

pytest.importorskip("apache_beam", reason="needs Apache Beam: pip install 'mindspore-inference[beam]'")

import apache_beam as beam
from apache_beam.ml.inference import base
from apache_beam.testing.util import assert_that
from apache_beam.transforms.util import _BatchSizeEstimator
from apache_beam.transforms.window import GlobalWindow, IntervalWindow
from hypothesis import given
from hypothesis import strategies as st

from examples import examples
from inference.answering.elements import TokenLength, num_bytes, without_key
from inference.beam import MindSporeModelHandler
from inference.beam.handlers.batching import BatchElements, Limits, _OfOneBundle
from inference.errors import ConfigError

WINDOWS = [GlobalWindow(), IntervalWindow(0, 5), IntervalWindow(5, 10)]


@examples(60)
@given(
    st.lists(st.tuples(st.text("ab", max_size=12), st.sampled_from(range(3))), max_size=40),
    st.one_of(st.none(), st.integers(1, 20)),
    st.one_of(st.none(), st.lists(st.integers(1, 12), min_size=1, max_size=3, unique=True).map(sorted)),
    st.integers(1, 8),
)
def test_a_bundle_becomes_batches_within_all_limits(elements, most_weight, boundaries, most_rows):
    measure = len if boundaries else None
    limits = Limits(most_weight, len, measure, boundaries or (1,))
    maker = _OfOneBundle(_BatchSizeEstimator(most_rows, most_rows, record_metrics=False), limits)
    maker.start_bundle()
    given_out = [batch for text, window in elements for batch in maker.process((text), WINDOWS[window])]
    given_out += list(maker.finish_bundle())
    for batch in given_out:
        rows = batch.value
        assert 1 <= len(rows) <= most_rows
        assert most_weight is None or len(rows) == 1 or sum(map(len, rows)) <= most_weight
        assert len({limits.bucket(row) for row in rows}) == 1
    for number, window in enumerate(WINDOWS):
        for bucket in range(4):
            expected = [text for text, of in elements if of == number and limits.bucket(text) == bucket]
            got = [row for batch in given_out if batch.windows == (window,) for row in batch.value]
            assert [row for row in got if limits.bucket(row) == bucket] == expected


@pytest.mark.parametrize(
    "arguments",
    [
        {"bucket_boundaries": [4]},
        {"length_fn": len, "bucket_boundaries": []},
        {"length_fn": len, "bucket_boundaries": [8, 4]},
        {"length_fn": len, "bucket_boundaries": [0, 4]},
        {"max_batch_weight": 5},
        {"max_batch_weight": 0, "element_size_fn": len},
    ],
)
def test_invalid_limits_are_rejected(arguments):
    with pytest.raises(ConfigError):
        BatchElements(**arguments)


class Echo(MindSporeModelHandler):
    """Says with which others a row was."""

    def load_model(self):
        return STUB

    def run_inference(self, batch, model, inference_args=None):
        return ["|".join(batch)] * len(batch)


class _Stub:
    pass


STUB = _Stub()
TEXTS = ["a", "bb", "cccccccc", "d", "eeeeeeee", "ff"]


@pytest.mark.parametrize("duration", [None, 1])
def test_weights_and_buckets_work_in_beams_own_run_inference(duration):
    handler = Echo(
        "demo",
        max_batch_weight=9,
        element_size_fn=len,
        batch_length_fn=len,
        batch_bucket_boundaries=[5],
        max_batch_duration_secs=duration,
    )
    with beam.Pipeline() as pipeline:
        found = pipeline | beam.Create([TEXTS]) | beam.FlatMap(list) | base.RunInference(handler)

        def check(batches):
            assert sorted(batches) == sorted(["a|bb|d|ff"] * 4 + ["cccccccc", "eeeeeeee"]), batches

        assert_that(found, check)


def test_tokens_are_counted_without_the_key_and_without_weights(monkeypatch):
    monkeypatch.setattr("inference.models.source.ModelSource.pairs", lambda self: 1 / 0)
    handler = MindSporeModelHandler("demo", check=False, max_batch_weight=100)
    count = handler.batch_elements_kwargs()["element_size_fn"]
    assert isinstance(count, TokenLength)
    assert count("Once upon a time") == count(("key", "Once upon a time")) == 5
    assert count([1, 2, 3]) == count(np.array([1, 2, 3])) == count((1, 2, 3)) == 3
    assert count({"prompt": [1, 2]}) == 2 and count((1, 2)) == 2
    assert count("") == count(None) == 1
    assert pickle.loads(pickle.dumps(count))("Once upon a time") == 5
    assert without_key(("k", {"prompt": "a"})) == {"prompt": "a"}


def test_bytes_are_those_of_the_prompts():
    assert num_bytes("äb") == 3
    assert num_bytes([1, 2, 3]) == num_bytes(np.array([1, 2, 3])) == 12
    assert num_bytes({"prompt": "a"}) == 15
    assert num_bytes(object()) is num_bytes(5) is None
    handler = MindSporeModelHandler("demo", check=False)
    assert handler.get_num_bytes(["äb", [1]]) == 7
    assert handler.get_num_bytes([1, 2]) == len(pickle.dumps([1, 2]))
