"""Perplexity: how surprised a model is by texts that it did not write.

Knows token ids; documents are scored side by side through the same flat step that generates. A document that is
longer than the model's context is scored in pieces that follow one another, each from an empty context.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from inference.models.runner import StepModel
from inference.models.step import SequenceStep, StepBatch

# Logits of all tokens of a step are held at once.
TOKENS_AT_ONCE = 512


@dataclass(frozen=True)
class Score:
    """Over all documents: predicted tokens, and the sum of their negative log likelihoods in nats."""

    tokens: int
    nats: float

    @property
    def perplexity(self) -> float:
        """e to the mean negative log likelihood of a token."""
        return math.exp(self.nats / self.tokens) if self.tokens else math.nan


def score(model: StepModel, documents: Iterable[Sequence[int]]) -> Score:
    """Scores every token of every document but the first, given those before it."""
    tokens, nats = 0, 0.0
    model.blocks.forget()
    for group in _groups(_pieces(documents, min(model.context_length, TOKENS_AT_ONCE))):
        logits = model.step(StepBatch.build(_side_by_side(group, model.block_size), model.block_size, True)).logits
        row = 0
        for piece in group:
            predicted = logits[row : row + len(piece) - 1].astype(np.float64)
            row += len(piece)
            nats += float(_negative_log_likelihood(predicted, np.asarray(piece[1:])).sum())
            tokens += len(piece) - 1
    return Score(tokens, nats)


def positions_needed(block_size: int) -> int:
    """Positions of cache that `score` uses."""
    # Pieces of two tokens each fill a block with hardly anything.
    return TOKENS_AT_ONCE // 2 * block_size + TOKENS_AT_ONCE


def _negative_log_likelihood(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """logits [n, vocabulary], targets [n] -> nats [n]."""
    largest = logits.max(axis=1, keepdims=True)
    total = np.log(np.exp(logits - largest).sum(axis=1)) + largest[:, 0]
    return total - logits[np.arange(len(targets)), targets]


def _pieces(documents: Iterable[Sequence[int]], length: int) -> Iterator[Sequence[int]]:
    for document in documents:
        for start in range(0, max(len(document) - 1, 0), length):
            piece = document[start : start + length]
            if len(piece) > 1:
                yield piece


def _groups(pieces: Iterable[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    group: list[Sequence[int]] = []
    for piece in pieces:
        if group and sum(map(len, group)) + len(piece) > TOKENS_AT_ONCE:
            yield group
            group = []
        group.append(piece)
    if group:
        yield group


def _side_by_side(group: list[Sequence[int]], block_size: int) -> list[SequenceStep]:
    """Each piece on blocks of its own; block 0 stays free."""
    steps, block = [], 1
    for piece in group:
        count = -(-len(piece) // block_size)
        steps.append(SequenceStep(piece, 0, range(block, block + count)))
        block += count
    return steps
