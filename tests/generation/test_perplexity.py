"""Scores of continuations, held against the toy model's own logits."""

from __future__ import annotations

import numpy as np
import pytest
from toys import ToyModel, logits_of

from inference.generation import perplexity
from inference.generation.perplexity import Continuation, score, score_continuations


def nats_of(tokens: list[int], start: int) -> float:
    total = 0.0
    for place in range(start, len(tokens)):
        logits = logits_of(tokens[:place], 40).astype(np.float64)
        total += float(np.log(np.exp(logits).sum()) - logits[tokens[place]])
    return total


@pytest.mark.parametrize("at_once", [3, 8, 512])
def test_each_token_counts_given_all_before_it(monkeypatch, at_once):
    """Also where a row goes through in several steps, and rows share a step."""
    monkeypatch.setattr(perplexity, "TOKENS_AT_ONCE", at_once)
    generator = np.random.default_rng(0)
    rows = [
        Continuation(generator.integers(0, 40, length).tolist(), start)
        for length, start in ((2, 1), (3, 2), (20, 1), (20, 19), (11, 7), (4, 1), (9, 3))
    ]
    scores = score_continuations(ToyModel(), rows)
    assert [found.tokens for found in scores] == [len(tokens) - start for tokens, start, *_ in rows]
    assert [found.nats for found in scores] == pytest.approx([nats_of(*row[:2]) for row in rows], rel=1e-5)


def test_a_whole_document_is_a_continuation_of_its_first_token():
    document = list(range(1, 30))
    (continuation,) = score_continuations(ToyModel(), [Continuation(document, 1)])
    whole = score(ToyModel(), [document])
    assert (whole.tokens, whole.nats) == (continuation.tokens, pytest.approx(continuation.nats))


def test_there_is_cache_for_the_longest_row():
    block = ToyModel().block_size
    positions = perplexity.positions_needed(block, 60)
    model = ToyModel(num_blocks=-(-positions // block) + 1)
    rows = [Continuation([1] * 60, 1), *(Continuation([1, 2], 1) for _ in range(400))]
    assert len(score_continuations(model, rows)) == 401
