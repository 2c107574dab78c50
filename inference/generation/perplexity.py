"""Perplexity: how surprised a model is by texts that it did not write.

Knows token ids; documents are scored side by side through the same flat step that generates. A document that is
longer than the model's context is scored in pieces that follow one another, each from an empty context; an answer
given its prompt is scored in its whole context.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from inference.models.runner import StepModel
from inference.models.step import SequenceStep, StepBatch

# Logits of all tokens of a step are held at once.
TOKENS_AT_ONCE = 512
Item = TypeVar("Item")


@dataclass(frozen=True)
class Score:
    """Over all documents: predicted tokens, and the sum of their negative log likelihoods in nats."""

    tokens: int
    nats: float

    @property
    def perplexity(self) -> float:
        """e to the mean negative log likelihood of a token."""
        return math.exp(self.nats / self.tokens) if self.tokens else math.nan


def score(model: StepModel, documents: Iterable[Sequence[int]], adapter: int = 0) -> Score:
    """Scores every token of every document but the first, given those before it.

    Args:
        adapter: by its number in the model; 0 for none.
    """
    tokens, nats = 0, 0.0
    model.blocks.forget()
    for group in _groups(_pieces(documents, min(model.context_length, TOKENS_AT_ONCE)), len):
        steps = _side_by_side([(piece, 0, adapter) for piece in group], model.block_size)
        logits = model.step(StepBatch.build(steps, model.block_size, True)).logits
        row = 0
        for piece in group:
            predicted = logits[row : row + len(piece) - 1].astype(np.float64)
            row += len(piece)
            nats += float(_negative_log_likelihood(predicted, np.asarray(piece[1:])).sum())
            tokens += len(piece) - 1
    return Score(tokens, nats)


def score_continuations(model: StepModel, rows: Iterable[tuple[Sequence[int], int, int]]) -> list[Score]:
    """Scores the ends of sequences.

    Args:
        rows: token ids that fit the model's context, the place (from 1) of the first one that counts, and the number
            of the row's adapter, 0 for none; each token counts given all those before it, however many these are.

    Returns:
        A score for each row.
    """
    scores = []
    model.blocks.forget()
    for group in _groups(rows, lambda row: len(row[0])):
        nats = [0.0] * len(group)
        longest = max(len(tokens) for tokens, _, _ in group)
        # A row that is longer than a step has a group of its own, and goes through in parts.
        for begin in range(0, longest, TOKENS_AT_ONCE):
            parts = [(tokens[begin : begin + TOKENS_AT_ONCE], begin, adapter) for tokens, _, adapter in group]
            for row, more in enumerate(_nats_of_parts(model, group, parts)):
                nats[row] += more
        scores += [Score(len(tokens) - start, sum_) for (tokens, start, _), sum_ in zip(group, nats, strict=True)]
    return scores


def positions_needed(block_size: int, longest: int = 0) -> int:
    """Positions of cache that `score` uses, and `score_continuations` where no row is longer than `longest`."""
    # Pieces of two tokens each fill a block with hardly anything.
    return TOKENS_AT_ONCE // 2 * block_size + max(TOKENS_AT_ONCE, longest + block_size)


def _nats_of_parts(
    model: StepModel, group: Sequence[tuple[Sequence[int], int, int]], parts: Sequence[tuple[Sequence[int], int, int]]
) -> Iterator[float]:
    """Runs a part of each row, which begins at a place of the row; the nats of the tokens that it predicts."""
    wanted: list[int] = []
    targets: list[list[int]] = []
    offset = 0
    for (tokens, start, _), (part, begin, _) in zip(group, parts, strict=True):
        # The logits of a token are for the one that follows it.
        places = range(max(start - 1, begin), min(begin + len(part), len(tokens) - 1))
        wanted += [offset + place - begin for place in places]
        targets.append([tokens[place + 1] for place in places])
        offset += len(part)
    steps = _side_by_side(parts, model.block_size)
    logits = model.step(StepBatch.build(steps, model.block_size, True, wanted)).logits
    row = 0
    for ids in targets:
        predicted = logits[row : row + len(ids)].astype(np.float64)
        row += len(ids)
        yield float(_negative_log_likelihood(predicted, np.asarray(ids)).sum()) if ids else 0.0


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


def _groups(items: Iterable[Item], length: Callable[[Item], int]) -> Iterator[list[Item]]:
    """As many at once as a step has room for; one that is longer alone."""
    group: list[Item] = []
    for item in items:
        if group and sum(map(length, group)) + length(item) > TOKENS_AT_ONCE:
            yield group
            group = []
        group.append(item)
    if group:
        yield group


def _side_by_side(parts: Sequence[tuple[Sequence[int], int, int]], block_size: int) -> list[SequenceStep]:
    """Each part, which begins at a place of its sequence, with adapter, on blocks of its own; block 0 stays free."""
    steps, block = [], 1
    for tokens, start, adapter in parts:
        count = -(-(start + len(tokens)) // block_size)
        steps.append(SequenceStep(tokens, start, range(block, block + count), adapter=adapter))
        block += count
    return steps
