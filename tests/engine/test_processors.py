"""Logits processors and cutoffs against transformers' own (scripts/make_processor_goldens.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toys import make_request

from inference.config import GenerationConfig
from inference.engine.processors import processed
from inference.engine.sampler import distribution

GOLDENS = json.loads((Path(__file__).parents[1] / "goldens" / "generation" / "processors.json").read_text())


@pytest.mark.parametrize("case", GOLDENS["cases"], ids=lambda case: f"{case['settings']} after {case['answered']}")
def test_the_distribution_is_that_of_transformers(case: dict[str, Any]) -> None:
    settings = {"do_sample": True, "top_k": 0, **case["settings"], "eos_token_id": GOLDENS["eos"]}
    request = make_request(GOLDENS["prompt"], max_new_tokens=GOLDENS["new"], **settings)
    request.output_ids = GOLDENS["answer"][: case["answered"]]
    scores = processed(np.array(case["logits"], np.float32), request)
    ids, found = distribution(scores, request.generation)
    probabilities = np.zeros(len(scores))
    probabilities[ids] = found
    # transformers computes in float32.
    np.testing.assert_allclose(probabilities, case["probabilities"], rtol=1e-5, atol=1e-7)


def test_a_token_of_minus_infinity_is_never_chosen() -> None:
    logits = np.full(300, -np.inf, np.float32)
    logits[[5, 9]] = 1.0
    for settings in ({"top_k": 50}, {"top_k": 0}, {"top_k": 0, "top_p": 0.999}, {"top_k": 0, "typical_p": 0.99}):
        ids, probabilities = distribution(logits, GenerationConfig(do_sample=True, **settings))
        assert ids.tolist() == [5, 9] and probabilities.tolist() == [0.5, 0.5]


def test_a_first_token_is_forced_once() -> None:
    request = make_request([4], forced_bos_token_id=6, begin_suppress_tokens=[1], repetition_penalty=2.0)
    logits = np.arange(8, dtype=np.float32)
    assert int(processed(logits, request).argmax()) == 6
    request.output_ids = [6]
    scores = processed(logits, request)
    assert scores[1] == -np.inf and scores[6] == 3.0
