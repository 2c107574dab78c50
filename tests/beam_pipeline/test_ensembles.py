"""Several models in one pipeline: side by side, split, one after the other, of this project and of others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytest.importorskip("apache_beam")

from endpoint_server import KEY, EndpointServer
from pipeline_place import demo_with

ROOT = Path(__file__).parents[2]
PHRASES = ["the big house", "my door", "two dogs", "the red apple", "a small bird", "the old tree"]
SKLEARN = "apache_beam.ml.inference.sklearn_inference.SklearnModelHandlerNumpy"


def phrase(number: int) -> dict:
    return {"custom_id": f"r{number}", "prompt": f"Translate to German: {PHRASES[number]}", "number": number}


def test_all_to_each_then_one_after_the_other(place):
    """Two of ours side by side, a remote one that is asked about both, a handler of the user's at the end."""
    rows = [phrase(0), phrase(1), {"custom_id": "sum", "prompt": "12 + 7 ="}, {"custom_id": "boom", "prompt": "boom"}]
    place.write("in.jsonl", *rows)
    with EndpointServer() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEST_KEY", KEY)
        remote = {
            "url": server.url,
            "model": "judge",
            "key_variable": "TEST_KEY",
            "first_delay": 0.01,
            "max_retries": 1,
        }
        steps = {
            "small": {"options": {"engine.weight_dtype": "int4"}},
            "large": {"settings": {"max_new_tokens": 8}},
            "judge": {
                "after": ["small", "large"],
                "remote": remote,
                "template": "{% if 'sum' in prompt or '+' in prompt %}refuse 9{% endif %} {{ small }} or {{ large }}",
            },
            "loud": {
                "after": "judge",
                "handler": "pipeline_handlers.Shout",
                "arguments": {"mark": "?", "kind": {"object": "collections.OrderedDict"}},
                "template": "{{ answer }} of {{ prompt }}",
                "result": "pipeline_handlers.last_word",
            },
        }
        report = place.directory / "page.html"
        assert place.run("in.jsonl", pipeline={"steps": steps, "fields": ["number"], "report_file": str(report)}) == 3
    records = place.records()
    assert records["r0"]["text"] == "HOUSE?" and records["r0"]["step"] == "loud"
    small = records["r0"]["steps"]["small"]
    assert small["text"] == records["r0"]["steps"]["large"]["text"] == " das große Haus"
    assert small["completion_tokens"] == 5
    assert records["r0"]["steps"]["judge"]["text"].endswith(" das große Haus or  das große Haus")
    failures = {row["custom_id"]: row for row in place.failures()}
    assert set(failures) == {"sum", "boom"} and set(records) == {"r0", "r1"}
    assert (failures["sum"]["error"]["type"], failures["sum"]["error"]["step"]) == ("refused", "judge")
    assert KEY not in json.dumps(failures) and failures["sum"]["steps"]["small"]["text"] == " 19"
    assert failures["boom"]["error"] == {
        "type": "model_failed",
        "message": "RuntimeError: boom was in it",
        "line": 4,
        "step": "loud",
    }
    figures = json.loads((place.directory / "page.json").read_text())
    pairs = {tuple(pair["steps"]): pair for pair in figures["pairs"]}
    assert pairs["small", "large"]["rows"] == 2 and pairs["small", "large"]["agreement"] == 1
    assert figures["steps"]["large"]["total_seconds"]["p50"] > 0
    assert {row["custom_id"] for row in figures["rows"]} == {"r0", "r1"}
    assert "das große Haus" in report.read_text() and "<script" not in report.read_text()


def test_a_split_by_row_name_and_its_join(place):
    place.write("in.jsonl", *(phrase(i) for i in range(6)))
    steps = {
        "one": {"handler": "pipeline_handlers.Shout"},
        "two": {"handler": "pipeline_handlers.Shout", "arguments": {"mark": "?"}},
        "end": {
            "handler": "pipeline_handlers.Shout",
            "after": ["one", "two"],
            "template": "{{ answer }}{{ row.number }}",
        },
    }
    settings = {"steps": steps, "fields": "number", "splits": [{"one": 0.5, "two": 0.5}]}
    assert place.run("in.jsonl", pipeline=settings) == 0
    records = place.records()
    ways = {name: set(record["steps"]) - {"end"} for name, record in records.items()}
    assert set(ways) == {f"r{i}" for i in range(6)} and {next(iter(way)) for way in ways.values()} == {"one", "two"}
    for name, record in records.items():
        (way,) = ways[name]
        mark = "!" if way == "one" else "?"
        assert record["text"] == f"TRANSLATE TO GERMAN: {PHRASES[int(name[1])].upper()}{mark}{name[1]}!"
    # The same rows go the same way in any other run.
    assert place.run("in.jsonl", pipeline=settings, out="again") == 0
    again = place.records("again/answers-*.jsonl")
    assert {name: set(record["steps"]) - {"end"} for name, record in again.items()} == ways


def test_a_row_that_breaks_a_model_is_found(place):
    """Also where the handler gives fewer results than rows, of which Beam itself would lose some."""
    texts = ["a", "b", "boom", "c", "d", "lost", "e", "f", "g"]
    rows = [{"custom_id": str(number), "prompt": text} for number, text in enumerate(texts)]
    place.write("in.jsonl", *rows)
    assert place.run("in.jsonl", pipeline={"steps": {"loud": {"handler": "pipeline_handlers.Shout"}}}) == 3
    assert sorted(place.texts().values()) == [f"{letter}!" for letter in "ABCDEFG"]
    reasons = {row["custom_id"]: row["error"]["message"] for row in place.failures()}
    assert reasons == {"2": "RuntimeError: boom was in it", "5": "ValueError: Shout gave 0 results for a batch of 1"}


def test_scikit_learn(place):
    """A field of the row, and values of earlier steps; rows that have not what it takes fail alone."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    import pickle

    model = linear_model.LinearRegression().fit([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [1.0, 3.0, 4.0])
    path = place.directory / "model.pkl"
    path.write_bytes(pickle.dumps(model))
    steps = {
        "fields": {
            "handler": SKLEARN,
            "arguments": {"model_uri": str(path)},
            "field": "features",
            "prepare": "numpy.asarray",
        }
    }
    place.write("in.jsonl", {"custom_id": "a", "features": [1.0, 1.0]}, {"custom_id": "b", "features": [2.0, 0.0]}, {})
    assert place.run("in.jsonl", pipeline={"steps": steps}) == 3
    assert {name: record["value"] for name, record in place.records().items()} == {
        "a": pytest.approx(6),
        "b": pytest.approx(5),
    }
    (failed,) = place.failures()
    assert failed["error"]["message"].endswith("in.jsonl:3: no 'features' in this row")


# Beside it a torch in the process would change what other tests see, and libraries of both would meet.
WITH_TORCH = """
import sys, torch
from inference.cli import main
module = torch.nn.Linear(2, 1)
with torch.no_grad():
    module.weight.copy_(torch.tensor([[2.0, 3.0]]))
    module.bias.copy_(torch.tensor([1.0]))
torch.save(module.state_dict(), sys.argv[1])
main(sys.argv[2:])
"""


def test_pytorch(place):
    """The command line, in a process that has torch; the rows also go through a model of ours."""
    folder = os.environ.get("TORCH_FOLDER")
    if folder is None:
        pytest.importorskip("torch", reason="needs torch, which scripts/test.sh fetches where a CPU build can be had")
    state, config, out = place.directory / "state.pt", place.directory / "steps.yaml", place.directory / "out"
    linear = {
        "handler": "apache_beam.ml.inference.pytorch_inference.PytorchModelHandlerTensor",
        "arguments": {
            "state_dict_path": str(state),
            "model_class": {"object": "torch.nn.Linear"},
            "model_params": {"in_features": 2, "out_features": 1},
        },
        "field": "features",
        "prepare": "torch.tensor",
    }
    steps = {"linear": linear, "ours": {}}
    config.write_text(yaml.safe_dump(demo_with({"pipeline": {"steps": steps, "output": "linear"}})))
    rows = place.write("in.jsonl", {"custom_id": "a", "features": [1.0, 1.0], "prompt": "2 + 3 ="}, {"prompt": "b"})
    words = ["--config", config, "--run_mode", "pipeline", "--predict_data", rows, "--save_file", out]
    paths = [str(ROOT), *([folder] if folder else [])]
    done = subprocess.run(
        [sys.executable, "-c", WITH_TORCH, state, *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3, done.stderr
    record = place.records()["a"]
    assert record["value"] == [6.0] and record["steps"]["ours"]["text"] == " 5"
    (failed,) = place.failures()
    assert failed["error"]["message"].endswith("in.jsonl:2: no 'features' in this row")
