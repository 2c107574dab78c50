"""Writes tests/goldens/generation/processors.json: the output of transformers' logits processors for random logits.

Run it with PyTorch and transformers installed (extra `dev`): `python scripts/make_processor_goldens.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import LogitsProcessorList
from transformers.generation import logits_process as hf

TARGET = Path(__file__).parents[1] / "tests" / "goldens" / "generation" / "processors.json"
VOCABULARY = 24
PROMPT, ANSWER = [3, 7, 1, 7, 9], [7, 1, 4, 7]
EOS, NEW = 2, 5


def processors(settings: dict[str, Any]) -> list[Any]:
    """Return transformers' processor for each setting."""
    device = "cpu"
    made = {
        "sequence_bias": lambda value: hf.SequenceBiasLogitsProcessor(value),
        "bad_words_ids": lambda value: hf.NoBadWordsLogitsProcessor(value, EOS),
        "repetition_penalty": lambda value: hf.RepetitionPenaltyLogitsProcessor(value),
        "encoder_repetition_penalty": lambda value: hf.EncoderRepetitionPenaltyLogitsProcessor(
            value, torch.tensor([PROMPT])
        ),
        "no_repeat_ngram_size": lambda value: hf.NoRepeatNGramLogitsProcessor(value),
        "encoder_no_repeat_ngram_size": lambda value: hf.EncoderNoRepeatNGramLogitsProcessor(
            value, torch.tensor([PROMPT])
        ),
        "forced_eos_token_id": lambda value: hf.ForcedEOSTokenLogitsProcessor(len(PROMPT) + NEW, value, device),
        "exponential_decay_length_penalty": lambda value: hf.ExponentialDecayLengthPenalty(
            tuple(value), EOS, len(PROMPT)
        ),
        "suppress_tokens": lambda value: hf.SuppressTokensLogitsProcessor(value, device),
        "begin_suppress_tokens": lambda value: hf.SuppressTokensAtBeginLogitsProcessor(value, len(PROMPT), device),
        "temperature": lambda value: hf.TemperatureLogitsWarper(value),
        "top_k": lambda value: hf.TopKLogitsWarper(value),
        "top_p": lambda value: hf.TopPLogitsWarper(value),
        "min_p": lambda value: hf.MinPLogitsWarper(value),
        "typical_p": lambda value: hf.TypicalLogitsWarper(value),
        "epsilon_cutoff": lambda value: hf.EpsilonLogitsWarper(value),
        "eta_cutoff": lambda value: hf.EtaLogitsWarper(value),
    }
    return [made[name](value) for name, value in settings.items()]


CASES: list[tuple[dict[str, Any], int]] = [
    ({"sequence_bias": [[[5], -2.5], [[4, 7, 6], 9.0], [[7, 11], 3.0], [[1, 11], 5.0]]}, 4),
    ({"bad_words_ids": [[8], [7, 5], [4, 7, 10], [1, 3], [EOS]]}, 4),
    ({"repetition_penalty": 1.7}, 4),
    ({"encoder_repetition_penalty": 1.5}, 4),
    ({"no_repeat_ngram_size": 2}, 4),
    ({"no_repeat_ngram_size": 3}, 2),
    ({"encoder_no_repeat_ngram_size": 2}, 4),
    ({"forced_eos_token_id": EOS}, 4),
    ({"forced_eos_token_id": EOS}, 3),
    ({"exponential_decay_length_penalty": [2, 1.5]}, 4),
    ({"exponential_decay_length_penalty": [2, 1.5]}, 2),
    ({"suppress_tokens": [0, 9, 23]}, 4),
    ({"begin_suppress_tokens": [0, 9, 23]}, 0),
    ({"begin_suppress_tokens": [0, 9, 23]}, 1),
    ({"temperature": 0.7, "typical_p": 0.5}, 4),
    ({"typical_p": 0.9}, 4),
    ({"epsilon_cutoff": 0.04}, 4),
    ({"eta_cutoff": 0.1}, 4),
    ({"top_k": 8, "top_p": 0.9, "min_p": 0.1, "typical_p": 0.8, "epsilon_cutoff": 0.05}, 4),
    ({"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "suppress_tokens": [4], "top_k": 6}, 4),
]


def main() -> None:
    generator = torch.Generator().manual_seed(5)
    found = []
    for settings, answered in CASES:
        logits = 2 * torch.randn(1, VOCABULARY, generator=generator)
        ids = torch.tensor([PROMPT + ANSWER[:answered]])
        scores = LogitsProcessorList(processors(settings))(ids, logits.clone())
        probabilities = torch.softmax(scores.double(), dim=-1)[0].tolist()
        found.append(
            {"settings": settings, "answered": answered, "logits": logits[0].tolist(), "probabilities": probabilities}
        )
    cases = {"prompt": PROMPT, "answer": ANSWER, "eos": EOS, "new": NEW, "cases": found}
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text(json.dumps(cases) + "\n")


if __name__ == "__main__":
    main()
