"""A new model's trial by the thresholds of an evaluation."""

from __future__ import annotations

import pickle

import pytest

pytest.importorskip("apache_beam")

from inference.beam.serving.validation import trial_of
from inference.errors import ConfigError
from inference.evaluate.examples import Example
from inference.evaluate.gate import Gate
from inference.inputs.prompts import Prompt

EXAMPLES = [
    Example(Prompt(str(number), f"row {number}", text=f"{number} + 1 ="), (f" {number + 1}",), ("sum",))
    for number in range(4)
]


def records(*texts: str) -> list[dict]:
    return [{"text": text, "error": None, "total_seconds": 0.1, "ttft_seconds": 0.1} for text in texts]


def test_a_model_is_judged_by_its_answers():
    trial = pickle.loads(pickle.dumps(trial_of(EXAMPLES, Gate(at_least={"exact_match@sum": 0.75}))))
    assert [prompt.text for prompt in trial.rows] == [example.prompt.text for example in EXAMPLES]
    assert trial.judge(records(" 1", " 2", " 3", "no")) is None
    said = trial.judge(records(" 1", " 2", "no", "no"))
    assert said == "missed thresholds: exact_match@sum >= 0.75: 0.5000"


@pytest.mark.parametrize("gate", [Gate(at_most={"perplexity": 2}), Gate(max_drop={"exact_match": 0})])
def test_thresholds_that_a_trial_cannot_measure(gate):
    with pytest.raises(ConfigError, match="neither perplexity nor max_drop"):
        trial_of(EXAMPLES, gate)
