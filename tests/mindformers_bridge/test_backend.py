"""`engine.backend: mindformers` behind the command line and the Python API, on a CPU."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BACKEND = ("--engine.backend", "mindformers")
ROWS = [
    {"custom_id": "sum", "prompt": "12 + 7 ="},
    {"custom_id": "story", "prompt": "Once upon a time", "max_new_tokens": 30, "do_sample": True, "seed": 5},
    {"custom_id": "bad", "prompt": "x", "max_new_token": 3},
    {"custom_id": "again", "prompt": "Once upon a time", "max_new_tokens": 30, "do_sample": True, "seed": 6},
    {"custom_id": "stop", "prompt": "Once upon a time", "stop": ["girl"], "logprobs": 1},
    {"custom_id": "ids", "prompt": [1, 1205, 1227], "presence_penalty": 1.5, "max_new_tokens": 8},
]
API = """
import json, sys
from inference import AutoModel, AutoTokenizer, TextStreamer, pipeline, LLM
tokenizer = AutoTokenizer.from_pretrained("demo")
model = AutoModel.from_pretrained({config!r})
pipe = pipeline("text_generation", model=model, tokenizer=tokenizer)
results = {{"pipeline": pipe(["12 + 7 =", "Once upon a time"], max_new_tokens=12)}}
results["ids"] = model.generate([1, 1205, 1227], max_new_tokens=8)
pipe("12 + 7 =", streamer=TextStreamer(tokenizer))
with LLM(model, tokenizer) as llm:
    stream = llm.stream("Once upon a time", max_new_tokens=40)
    results["begun"] = next(stream)
    stream.close()
    results["next"] = [answer.text for answer in llm.generate(["2 + 3 =", "12 + 7 ="])]
print(json.dumps(results), file=sys.stderr)
"""


def run(place: Path, *words: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    given = [sys.executable, *map(str, words)]
    return subprocess.run(given, cwd=place, env=environment, capture_output=True, text=True, timeout=280)


def records(path: Path) -> dict[str, dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        for timing in ("ttft_seconds", "total_seconds", "cached_tokens"):
            row.pop(timing, None)
        for token in row.get("logprobs") or ():
            token.pop("top", None)
    return {row["custom_id"]: row for row in rows}


@pytest.mark.slow
def test_a_job_has_the_records_metrics_and_errors_of_our_own(mindformers: None, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    program = (ROOT / "run_inference.py", "--config", "demo", "--predict_data", "rows.jsonl")
    flags = ("--predict_batch_size", 3, "--metrics_file", "metrics.json")
    native = run(tmp_path, *program, *flags, "--save_file", "native.jsonl")
    assert native.returncode == 3, native.stderr
    theirs = run(
        tmp_path, *program, *flags, "--save_file", "theirs.jsonl", *BACKEND, "--engine.weight_dtype", "float16"
    )
    assert theirs.returncode == 3, theirs.stderr
    assert records(tmp_path / "theirs.jsonl") == records(tmp_path / "native.jsonl")
    assert re.search("^without effect with engine.backend mindformers: .*engine.weight_dtype", theirs.stderr, re.M)
    # Nothing that MindSpore or MindFormers print gets through.
    assert theirs.stdout == ""
    assert "1 of 6 rows failed, the first: rows.jsonl:3: " in theirs.stderr
    assert "MindFormers' own networks do not run on a CPU: its generate loop runs this project's" in theirs.stderr
    assert "batches of at most 3 rows, each run to the end of its longest" in theirs.stderr
    figures = json.loads((tmp_path / "metrics.json").read_text())
    assert figures["prompt_tokens"] > 0 and figures["completion_tokens"] > 60
    assert {path.name for path in tmp_path.iterdir()} == {
        "rows.jsonl", "metrics.json", "native.jsonl", "native.jsonl.job", "theirs.jsonl", "theirs.jsonl.job"
    }  # fmt: skip


@pytest.mark.slow
def test_python_and_streams(mindformers: None, tmp_path: Path) -> None:
    config = tmp_path / "demo.yaml"
    config.write_text("pretrained_model_dir: demo\nengine: {backend: mindformers}\npredict_batch_size: 2\n")
    done = run(tmp_path, "-c", API.format(config=str(config)))
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stderr.splitlines()[-1])
    texts = [item["text_generation_text"][0] for item in results["pipeline"]]
    assert texts == ["12 + 7 = 19", "Once upon a time, there was a little girl named Ruby. She lived near"]
    assert results["ids"][0][:3] == [1, 1205, 1227] and len(results["ids"][0]) <= 11
    assert done.stdout == "12 + 7 = 19\n"
    assert results["begun"] == ","
    assert results["next"] == [" 5", " 19"]


def test_unsupported_features_are_rejected_at_once(mindformers: None, tmp_path: Path) -> None:
    program = (ROOT / "run_inference.py", "--config", "demo", *BACKEND, "--predict_data", "x")
    for flags, reason in (
        (("--run_mode", "evaluate"), "MindFormers does not do run_mode evaluate"),
        (("--random_weights", "True", "--check"), "MindFormers does not do random weights"),
    ):
        done = run(tmp_path, *program, *flags)
        assert done.returncode == 2
        assert done.stderr == f"error: --engine.backend: engine.backend mindformers: {reason}; give native\n"


def test_a_missing_package_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from inference.api import backend
    from inference.config import load_config
    from inference.errors import ConfigError

    monkeypatch.setattr(backend, "find_spec", lambda name: None)
    config = load_config({"engine": {"backend": "mindformers"}})
    with pytest.raises(ConfigError, match=r"mapping: engine.backend mindformers: mindformers is not installed \(pip"):
        backend.check_backend(config)


@pytest.mark.parametrize(("installed", "chosen"), [(True, "mindformers"), (False, "native")])
def test_auto_selects_mindformers_on_ascend_if_installed(installed, chosen, monkeypatch, capsys) -> None:
    from inference.api import backend
    from inference.config import load_config
    from inference.generation.model import GenerativeModel
    from inference.mindformers_bridge.backend import MindFormersModel

    monkeypatch.setattr(backend, "find_spec", lambda name: object() if installed else None)
    config = load_config({"context": {"device_target": "Ascend"}})
    assert backend.choose_model_class(config) is (MindFormersModel if installed else GenerativeModel)
    assert f"engine.backend is {chosen}: " in capsys.readouterr().err
    assert backend.choose_model_class(load_config({})) is GenerativeModel
