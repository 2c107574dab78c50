"""The handler, with the demo model: what goes in and comes out, inside Beam's own wrappers, and what is refused."""

from __future__ import annotations

import copy
import gc
import json
import os
import pickle
import subprocess
import sys
import weakref

import pytest

pytest.importorskip("apache_beam", reason="needs Apache Beam: pip install 'mindspore-inference[beam]'")

import apache_beam as beam
from apache_beam.ml.inference import base
from apache_beam.ml.inference.base import KeyedModelHandler, KeyModelMapping, MaybeKeyedModelHandler
from beam_helpers import DEMO, ROOT, run

from inference import AutoConfig, load_config
from inference.beam import MindSporeModelHandler
from inference.errors import ConfigError, DeviceError, ModelNotFoundError

EIGHT = {"max_new_tokens": 8}
ROWS = [
    {"custom_id": "text", "prompt": "Once upon a time"},
    {"custom_id": "ids", "prompt": [1, 320, 77]},
    {"custom_id": "chat", "messages": [{"role": "user", "content": "What is 3 + 4?"}]},
    {"custom_id": "own", "prompt": "The dog", "max_new_tokens": 3},
    {"custom_id": "drawn", "prompt": "The cat", "do_sample": True, "temperature": 1.5, "seed": 7},
    {"custom_id": "openai", "body": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}},
    {"custom_id": "bad", "prompt": ""},
    {"custom_id": "typo", "prompt": "a", "max_new_tokenz": 3},
]
SAME = ("custom_id", "prompt", "text", "token_ids", "finish_reason", "prompt_tokens", "completion_tokens")


def answer(handler, elements, **arguments):
    """The results of Beam's RunInference, and its metrics."""
    return run(lambda p: p | beam.Create(elements, reshuffle=False) | base.RunInference(handler, **arguments))


@pytest.mark.slow
def test_the_answers_are_those_of_the_command_line(demo, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    command = [
        sys.executable,
        "run_inference.py",
        "--config",
        "configs/demo/predict_demo.yaml",
        "--max_new_tokens",
        "8",
    ]
    command += ["--predict_data", str(rows), "--save_file", str(tmp_path / "out.jsonl")]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 3, done.stderr
    theirs = {r["custom_id"]: r for r in map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())}
    found, metrics = answer(demo, ROWS, inference_args=EIGHT)
    assert [result.example for result in found] == ROWS
    for result in found:
        own, other = result.inference, theirs[result.example["custom_id"]]
        assert {key: own[key] for key in SAME} == {key: other[key] for key in SAME}
        assert (own["error"] is None) == (other["error"] is None)
        assert result.model_id == own["model"] == other["model"] == "demo"
    good = [result.inference for result in found if result.inference["error"] is None]
    assert metrics["prompt_tokens"] == sum(record["prompt_tokens"] for record in good)
    assert metrics["completion_tokens"] == sum(record["completion_tokens"] for record in good)
    assert metrics["failed_rows"] == 2 and metrics["num_inferences"] == len(ROWS)
    assert metrics["time_to_first_token_micro_secs"].count == len(good)
    assert metrics["tokens_per_second"].count == metrics["inference_request_batch_size"].count == 1
    assert metrics["inference_request_batch_size"].max == metrics["batch_size"].max == len(ROWS)
    assert metrics["inference_request_batch_byte_size"].sum == demo.get_num_bytes(ROWS)
    assert metrics["inference_batch_latency_micro_secs"].min > 0 and metrics["msec_per_batch"].count == 1
    assert metrics["load_model_latency_milli_secs"].count == 1


def test_metrics_have_true_bytes_and_the_cache_s_hits(demo):
    long = "Once upon a time there was a little dog who lived in a big house near the sea with his friends. "
    _, metrics = answer(demo, [long + "He"], inference_args=EIGHT, metrics_namespace="mine")
    _, again = answer(demo, [long + "She", long + "They"], inference_args=EIGHT)
    assert metrics["model_byte_size"].sum == demo.load_model().num_bytes()
    assert abs(metrics["model_byte_size"].sum - (DEMO / "model.safetensors").stat().st_size) < 40_000
    assert again["cached_tokens"] >= 16 and "cached_tokens" not in metrics


def test_keyed_rows_keep_their_keys_and_their_number(demo):
    rows = [(number, "The dog" if number % 3 else "") for number in range(9)]
    found, _ = answer(KeyedModelHandler(demo), rows, inference_args=EIGHT)
    assert [(key, result.example) for key, result in found] == rows
    assert [result.inference["error"] is None for _, result in found] == [bool(text) for _, text in rows]


def test_several_models_by_key_and_elements_with_and_without_keys(demo):
    mapping = [
        KeyModelMapping(["a", "b"], demo),
        KeyModelMapping(["c"], MindSporeModelHandler("demo", model_id="second")),
    ]
    found, metrics = answer(KeyedModelHandler(mapping), [(key, "The dog") for key in "abcab"], inference_args=EIGHT)
    assert sorted((key, result.model_id) for key, result in found) == [
        ("a", "demo"), ("a", "demo"), ("b", "demo"), ("b", "demo"), ("c", "second")
    ]  # fmt: skip
    assert len({result.inference["text"] for _, result in found}) == 1
    assert metrics["a-_num_inferences"] == 4 and metrics["c-_num_inferences"] == 1
    maybe = MaybeKeyedModelHandler(demo)
    assert answer(maybe, ["The dog"], inference_args=EIGHT)[0][0].example == "The dog"
    assert answer(maybe, [("k", "The dog")], inference_args=EIGHT)[0][0][0] == "k"


def test_prepare_and_result_functions_and_custom_batches(demo):
    wrapped = demo.with_preprocess_fn(lambda number: f"{number} dogs").with_postprocess_fn(
        lambda result: result.inference["completion_tokens"]
    )
    assert answer(wrapped, [1, 2], inference_args={"max_new_tokens": 2})[0] == [2, 2]
    found, metrics = answer(demo.with_no_batching(), [["The dog", "The cat"], ["A"]], inference_args=EIGHT)
    assert len(found) == 3 and metrics["inference_request_batch_size"].max == 2


def test_steps_and_threads_share_one_engine(demo, monkeypatch):
    loads = []
    monkeypatch.setattr("inference.answering.shared_model.LLM", lambda config: loads.append(config))
    model = demo.load_model()
    twin = pickle.loads(pickle.dumps(MindSporeModelHandler(DEMO.parents[1] / "configs/demo/predict_demo.yaml")))
    assert twin.load_model()._current[0] is model._current[0] and not loads


def test_a_handler_can_be_pickled_and_its_model_weakly_referenced(demo):
    handler = MindSporeModelHandler("demo", model_id="mine", max_batch_size=3, env_vars={"A": "b"})
    handler.kept = handler.load_model()
    del handler.kept
    for twin in (pickle.loads(pickle.dumps(handler)), copy.deepcopy(handler)):
        assert (
            twin.batch_elements_kwargs()
            == handler.batch_elements_kwargs()
            == {"min_batch_size": 3, "max_batch_size": 3}
        )
        assert twin._config == handler._config and twin._kept is None and twin._model_id == "mine"
    model = handler.load_model()
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None


def test_a_config_is_accepted_in_all_its_forms():
    forms = ["demo", DEMO, AutoConfig.from_pretrained("demo"), load_config({"pretrained_model_dir": str(DEMO)})]
    forms += [{"pretrained_model_dir": "demo"}, ROOT / "configs/demo/predict_demo.yaml"]
    for form in forms:
        assert MindSporeModelHandler(config=form).has_model


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"config": "nowhere/at/all"}, ModelNotFoundError, "there is no model directory"),
        ({"config": "missing.yaml"}, ConfigError, "missing.yaml"),
        ({"config": {"pretrained_model_dirr": "demo"}}, ConfigError, "pretrained_model_dir"),
        ({"config": 5}, ConfigError, "config is int"),
        ({"config": {"pretrained_model_dir": "demo", "context": {"device_target": "GPU"}}}, DeviceError, "no GPU"),
        ({"config": "demo", "max_batch_sise": 5}, TypeError, "max_batch_sise"),
    ],
)
def test_a_missing_model_or_argument_is_rejected_before_a_pipeline_is_built(arguments, error, words):
    with pytest.raises(error, match=words):
        MindSporeModelHandler(**arguments)


def test_a_model_that_only_the_workers_have_is_not_checked():
    MindSporeModelHandler({"pretrained_model_dir": "/models/on/workers"}, check=False)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"max_new_tokenz": 5}, "did you mean 'max_new_tokens'"), ({"top_p": 7}, "top_p"), (["x"], "mapping")],
)
def test_unknown_generation_arguments_are_rejected_when_the_pipeline_is_built(settings, words):
    handler = MindSporeModelHandler("demo")
    with pytest.raises(ConfigError, match=words):
        beam.Pipeline() | beam.Create(["a"]) | base.RunInference(handler, inference_args=settings)


def test_environment_variables_are_set_before_the_model_is_loaded(demo, monkeypatch):
    monkeypatch.setenv("OF_THE_PIPELINE", "no")
    seen = []
    monkeypatch.setattr(
        "inference.beam.handlers.mindspore.loaded",
        lambda *args, real=None: seen.append(os.environ["OF_THE_PIPELINE"]) or 1 / 0,
    )
    with pytest.raises(Exception, match="division"):
        answer(MindSporeModelHandler("demo", env_vars={"OF_THE_PIPELINE": "yes"}), ["a"])
    assert seen[0] == "yes"


def test_without_beam_the_import_error_names_the_package():
    program = (
        "import importlib.util as u; real = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'apache_beam' else real(name, *rest)\n"
        "import inference.beam"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1
    assert last.endswith("needs Apache Beam, which is not installed; pip install 'mindspore-inference[beam]'"), last
