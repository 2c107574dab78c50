"""The examples run as they are, and Beam YAML knows our handlers."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("apache_beam")

from apache_beam.yaml import main

ROOT = Path(__file__).parents[2]
ANSWER_PROMPTS = """
pipeline:
  transforms:
    - type: Create
      name: Rows
      config:
        elements:
          - {custom_id: sum, prompt: '12 + 7 ='}
          - {custom_id: empty, prompt: ''}
    - type: AnswerPrompts
      input: Rows
      config:
        config: demo
        settings: {max_new_tokens: 9}
        error_handling: {output: failed}
    - type: WriteToJson
      name: Answers
      input: AnswerPrompts
      config: {path: good}
    - type: WriteToJson
      name: Failures
      input: AnswerPrompts.failed
      config: {path: bad}
providers:
  - type: python
    config: {}
    transforms:
      AnswerPrompts: inference.beam.yaml.AnswerPrompts
options:
  yaml_experimental_features: [ML]
  allow_unsafe_triggers: true
"""


def rows(directory: Path, name: str) -> list[dict]:
    return [json.loads(line) for path in directory.glob(f"{name}-*") for line in path.read_text().splitlines()]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def test_beams_own_yaml_main_runs_the_example(workplace):
    main.run([f"--yaml_pipeline_file={ROOT}/examples/beam.yaml"])
    assert {row["custom_id"]: row["text"] for row in rows(workplace, "answers.jsonl")} == {
        "sum": " 19",
        "house": " das große Haus",
    }


def test_answers_become_columns_and_failures_are_separate(workplace):
    main.run([f"--yaml_pipeline={ANSWER_PROMPTS}"])
    (good,) = rows(workplace, "good")
    assert (good["custom_id"], good["text"], good["finish_reason"], good["error"]) == ("sum", " 19", "stop", None)
    (bad,) = rows(workplace, "bad")
    assert (bad["custom_id"], bad["text"]) == ("empty", None)
    assert bad["error"].startswith("bad_row: ")


@pytest.mark.parametrize(
    ("config", "prefix"), [("demo_t5", "translate English to German: "), ("demo", "Translate to German: ")]
)
def test_the_example_of_t5(config, prefix, workplace, monkeypatch, capfd):
    spec = importlib.util.spec_from_file_location("beam_t5", ROOT / "examples" / "beam_t5.py")
    example = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "beam_t5", example)
    spec.loader.exec_module(example)
    words = ("--config", config, "--task_prefix", prefix, "--input", f"{ROOT}/examples/phrases.txt")
    monkeypatch.setattr(sys, "argv", ["beam_t5.py", *words])
    example.main()
    assert sorted(capfd.readouterr().out.splitlines()) == [
        f"{prefix}my door is black -> meine Tür ist schwarz",
        f"{prefix}the big house -> das große Haus",
    ]
