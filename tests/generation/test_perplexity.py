"""Scores of continuations, held against the toy model's own logits."""

from __future__ import annotations

import numpy as np
import pytest
from toys import ToyModel, logits_of

from inference.generation import perplexity
from inference.generation.perplexity import Continuation, compare, score, score_continuations


def nats_of(tokens: list[int], start: int) -> float:
    total = 0.0
    for place in range(start, len(tokens)):
        logits = logits_of(tokens[:place], 40).astype(np.float64)
        total += float(np.log(np.exp(logits).sum()) - logits[tokens[place]])
    return total


@pytest.mark.parametrize("at_once", [3, 8, 512])
def test_each_token_is_scored_given_all_before_it(monkeypatch, at_once):
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


class FlatterModel(ToyModel):
    """The toy model at a temperature of 2, with token 7 ruled out."""

    def step(self, batch):
        result = super().step(batch)
        result.logits[:] = flatter(result.logits)
        return result


def flatter(logits: np.ndarray) -> np.ndarray:
    found = logits / 2
    found[..., 7] = -np.inf
    return found


@pytest.mark.parametrize("at_once", [5, 512])
def test_the_divergence_is_that_of_each_token_s_distributions(monkeypatch, at_once):
    """Against sum(p * log(p / q)), token by token, from the toy's own logits; p is the baseline."""
    monkeypatch.setattr(perplexity, "TOKENS_AT_ONCE", at_once)
    documents = [list(range(1, 5)), [3], [9, 8, 6, 5, 4]]
    expected, same = [], 0
    for document in documents:
        for place in range(1, len(document)):
            q = logits_of(document[:place], 40).astype(np.float64)
            p = flatter(q)
            p_of, q_of = (np.exp(x) / np.exp(x).sum() for x in (p, q))
            expected.append(sum(a * np.log(a / b) for a, b in zip(p_of, q_of, strict=True) if a))
            same += int(p.argmax() == q.argmax())
    found = compare(ToyModel(), FlatterModel(), documents)
    assert found.nats.tolist() == pytest.approx(expected, rel=1e-5)
    assert found.same_argmax == same and found.score == score(ToyModel(), documents)
    assert found.baseline.nats == pytest.approx(score(FlatterModel(), documents).nats)
    figures = found.as_dict()
    assert figures["kl_divergence"] == pytest.approx(np.mean(expected)) and figures["kl_divergence_max"] > 0


def test_a_model_does_not_differ_from_itself():
    found = compare(ToyModel(), ToyModel(), [list(range(1, 30))])
    assert not found.nats.any() and found.same_argmax == len(found.nats) == 28 and found.score == found.baseline
