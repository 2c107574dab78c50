"""The handler of remote endpoints in Beam's own RunInference and in ours."""

from __future__ import annotations

import pickle

import pytest

pytest.importorskip("apache_beam")

import apache_beam as beam
from apache_beam.ml.inference.base import KeyedModelHandler
from apache_beam.ml.inference.base import RunInference as TheirRunInference
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that, equal_to
from endpoint_server import KEY, EndpointServer

from inference.beam import OpenAIModelHandler, RunInference
from inference.errors import ConfigError

IN_PROCESS = PipelineOptions(["--allow_unsafe_triggers"])


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("TEST_KEY", KEY)
    with EndpointServer() as running:
        yield running


def handler(server: EndpointServer, **more) -> OpenAIModelHandler:
    endpoint = {"url": server.url, "model": "m", "key_variable": "TEST_KEY", "first_delay": 0.01, "max_retries": 2}
    return OpenAIModelHandler({**endpoint, **more})


def test_each_row_is_retried_and_fails_on_its_own(server):
    made = handler(server)
    assert KEY.encode() not in pickle.dumps(made)
    rows = [("a", "good"), ("b", "fail 2 twice"), ("c", "refuse 9"), ("d", ""), ("e", {"prompt": "good", "top_p": 0.5})]
    with beam.Pipeline(options=IN_PROCESS) as pipeline:
        results = pipeline | beam.Create(rows) | TheirRunInference(KeyedModelHandler(made))
        seen = results | beam.MapTuple(
            lambda key, result: (
                key,
                result.model_id,
                result.inference["text"],
                (result.inference["error"] or {}).get("type"),
                result.inference["attempts"],
            )
        )
        expected = [
            ("a", "m", "answer to good", None, 1),
            ("b", "m", "answer to fail 2 twice", None, 3),
            ("c", "m", None, "refused", 1),
            ("d", "m", None, "bad_row", 0),
            ("e", "m", "answer to good", None, 1),
        ]
        assert_that(seen, equal_to(expected))
    counted = {
        metric.key.metric.name: metric.committed
        for metric in pipeline.result.metrics().query()["counters"]
        if metric.key.metric.namespace == "BeamML_OpenAI"
    }
    assert counted == {"num_inferences": 5, "prompt_tokens": 9, "completion_tokens": 12, "failed_rows": 2}
    assert sorted(server.tries.values()) == [1, 2, 3]


def test_dead_letters_hold_one_row(server):
    with beam.Pipeline(options=IN_PROCESS) as pipeline:
        rows = pipeline | beam.Create(["good", "nojson 9", "also good"])
        answered, dead = rows | RunInference(handler(server)).with_exception_handling()
        assert_that(answered | beam.Map(lambda result: result.example), equal_to(["good", "also good"]), "answered")
        assert_that(
            dead.failed_inferences | beam.Map(lambda letter: letter[0]), equal_to([["nojson 9"]]), "dead letters"
        )


def test_settings_for_all_rows_are_checked(server):
    made = handler(server)
    with pytest.raises(ConfigError, match="did you mean 'temperature'"):
        made.validate_inference_args({"temprature": 1})
    with pytest.raises(ConfigError, match="remote: unknown key 'modle'"):
        OpenAIModelHandler({"url": server.url, "modle": "m"})


def test_a_shared_beam_rate_limit(server):
    """What it turns away is tried again."""

    class Limiter:
        asked = 0

        def allow(self, hits_added: int = 1) -> bool:
            Limiter.asked += 1
            return Limiter.asked > 1

    made = OpenAIModelHandler({"url": server.url, "model": "m", "key_variable": "TEST_KEY"}, rate_limiter=Limiter())
    (result,) = made.run_inference(["good"], made.load_model())
    assert (result.inference["text"], Limiter.asked) == ("answer to good", 2)
