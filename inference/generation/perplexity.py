"""Perplexity: how well a model predicts given texts, and how far its predictions are from another model's.

Knows token ids. Documents are scored side by side, with the same flat step that generates. A document that is longer
than the model's context is scored in consecutive pieces, each from an empty context; an answer to a prompt, or to an
encoder's source, is scored in its whole context.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from inference.models.runner import StepModel
from inference.models.step import SequenceStep, StepBatch

# Maximum number of tokens in a step; the logits of all of them are in memory at once.
TOKENS_AT_ONCE = 512
Item = TypeVar("Item")


@dataclass(frozen=True)
class Score:
    """The number of predicted tokens, and the sum of their negative log likelihoods in nats."""

    tokens: int
    nats: float

    @property
    def perplexity(self) -> float:
        """e to the mean negative log likelihood of a token."""
        return math.exp(self.nats / self.tokens) if self.tokens else math.nan


@dataclass(frozen=True)
class Divergence:
    """How far a model's predictions are from a baseline's, at every token of the same texts.

    Attributes:
        score: the model's score.
        baseline: the baseline's score.
        nats: Kullback-Leibler divergence [tokens] of the model's distribution from the baseline's, in nats.
        same_argmax: number of tokens at which both models give one token the largest probability.
    """

    score: Score
    baseline: Score
    nats: np.ndarray
    same_argmax: int

    def as_dict(self) -> dict[str, float]:
        """The figures by their names; the divergence's mean, 99th percentile and maximum."""
        return {
            "baseline_perplexity": self.baseline.perplexity,
            "kl_divergence": float(self.nats.mean()),
            "kl_divergence_p99": float(np.percentile(self.nats, 99)),
            "kl_divergence_max": float(self.nats.max()),
            "same_argmax": self.same_argmax / len(self.nats),
        }


class Continuation(NamedTuple):
    """A sequence whose end is scored.

    Args:
        tokens: ids that fit the model's context.
        start: index (at least 1) of the first token to score, given all those before it.
        adapter: its number in the model; 0 for none.
        source: ids that the encoder reads, for models with one.
    """

    tokens: Sequence[int]
    start: int
    adapter: int = 0
    source: Sequence[int] = ()


def score(model: StepModel, documents: Iterable[Sequence[int]], adapter: int = 0) -> Score:
    """Scores every token of every document except the first, given those before it.

    Args:
        adapter: its number in the model; 0 for none.
    """
    tokens, nats = 0, 0.0
    model.blocks.forget()
    for group in _groups(_pieces(documents, min(model.context_length, TOKENS_AT_ONCE)), len):
        for piece, predicted in zip(group, _predictions(model, group, adapter), strict=True):
            nats += float(_negative_log_likelihood(predicted, np.asarray(piece[1:])).sum())
            tokens += len(piece) - 1
    return Score(tokens, nats)


def compare(
    model: StepModel, baseline: StepModel, documents: Iterable[Sequence[int]], adapters: tuple[int, int] = (0, 0)
) -> Divergence:
    """Scores documents with two models of one vocabulary, and compares their predictions token by token.

    The models take turns, so that only the logits of one step are in memory. The shorter context limits the pieces.

    Args:
        adapters: the number of each model's adapter; 0 for none.
    """
    nats, divergences, same = [0.0, 0.0], [], 0
    for each in (model, baseline):
        each.blocks.forget()
    length = min(model.context_length, baseline.context_length, TOKENS_AT_ONCE)
    for group in _groups(_pieces(documents, length), len):
        both = zip(_predictions(model, group, adapters[0]), _predictions(baseline, group, adapters[1]), strict=True)
        for piece, (own, theirs) in zip(group, both, strict=True):
            targets, own_totals, their_totals = np.asarray(piece[1:]), _log_totals(own), _log_totals(theirs)
            nats[0] += float(_negative_log_likelihood(own, targets, own_totals).sum())
            nats[1] += float(_negative_log_likelihood(theirs, targets, their_totals).sum())
            # Logits less their total are log probabilities.
            divergences.append(_divergence(theirs - their_totals[:, None], own - own_totals[:, None]))
            same += int((own.argmax(axis=1) == theirs.argmax(axis=1)).sum())
    found = np.concatenate(divergences) if divergences else np.zeros(0)
    return Divergence(Score(len(found), nats[0]), Score(len(found), nats[1]), found, same)


def score_continuations(model: StepModel, rows: Iterable[Continuation]) -> list[Score]:
    """Scores the ends of sequences, each in its whole context; returns a score for each row."""
    scores = []
    model.blocks.forget()
    for group in _groups(rows, lambda row: len(row.tokens) + len(row.source)):
        tables = _blocks([len(part) for row in group for part in (row.tokens, row.source)], model.block_size)
        own, sources = tables[::2], tables[1::2]
        read = [SequenceStep(row.source, 0, blocks) for row, blocks in zip(group, sources, strict=True) if row.source]
        if read:
            model.encode(StepBatch.build(read, model.block_size))
        nats = [0.0] * len(group)
        longest = max(len(row.tokens) for row in group)
        # A row that is longer than a step is a group of its own, and runs in parts.
        for begin in range(0, longest, TOKENS_AT_ONCE):
            steps = [
                SequenceStep(
                    row.tokens[begin : begin + TOKENS_AT_ONCE],
                    begin,
                    blocks,
                    (source, len(row.source)) if row.source else None,
                    row.adapter,
                )
                for row, blocks, source in zip(group, own, sources, strict=True)
            ]
            for index, more in enumerate(_nats_of_parts(model, group, steps)):
                nats[index] += more
        scores += [Score(len(row.tokens) - row.start, sum_) for row, sum_ in zip(group, nats, strict=True)]
    return scores


def positions_needed(block_size: int, longest: int = 0, has_encoder: bool = False) -> int:
    """Returns the cache positions that `score` needs, or `score_continuations` if no row is longer than `longest`.

    Args:
        has_encoder: rows also have a source, which counts toward their length.
    """
    # In the worst case pieces have two tokens, each in a block of its own; with a source, three tokens in two blocks.
    blocks = TOKENS_AT_ONCE * 2 // 3 if has_encoder else TOKENS_AT_ONCE // 2
    return blocks * block_size + max(TOKENS_AT_ONCE, longest + block_size)


def _nats_of_parts(model: StepModel, group: Sequence[Continuation], steps: Sequence[SequenceStep]) -> Iterator[float]:
    """Runs one part of each row; yields for each row the nats of the tokens that the part predicts."""
    wanted: list[int] = []
    targets: list[Sequence[int]] = []
    offset = 0
    for row, step in zip(group, steps, strict=True):
        # The logits at a token predict the one that follows it.
        first, end = max(row.start - 1, step.start), min(step.start + len(step.tokens), len(row.tokens) - 1)
        wanted += range(offset + first - step.start, offset + end - step.start)
        targets.append(row.tokens[first + 1 : end + 1])
        offset += len(step.tokens)
    logits = model.step(StepBatch.build(steps, model.block_size, True, wanted)).logits
    row_of = 0
    for ids in targets:
        predicted = logits[row_of : row_of + len(ids)].astype(np.float64)
        row_of += len(ids)
        yield float(_negative_log_likelihood(predicted, np.asarray(ids)).sum()) if ids else 0.0


def _predictions(model: StepModel, group: Sequence[Sequence[int]], adapter: int) -> Iterator[np.ndarray]:
    """Runs pieces of text in one step; yields for each the logits [n - 1, vocabulary] of all tokens but its first."""
    tables = _blocks(map(len, group), model.block_size)
    steps = [SequenceStep(piece, 0, table, adapter=adapter) for piece, table in zip(group, tables, strict=True)]
    logits = model.step(StepBatch.build(steps, model.block_size, True)).logits
    row = 0
    for piece in group:
        yield logits[row : row + len(piece) - 1].astype(np.float64)
        row += len(piece)


def _divergence(log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    """Computes sum(p * log(p / q)) [n], in nats, from log probabilities [n, vocabulary]."""
    p = np.exp(log_p)
    # A token of probability 0 adds nothing, though its logarithm is -inf.
    difference = np.subtract(log_p, log_q, where=p > 0, out=np.zeros_like(p))
    return (p * difference).sum(axis=1)


def _log_totals(logits: np.ndarray) -> np.ndarray:
    """Computes log(sum(exp(logits))) [n] from logits [n, vocabulary]."""
    largest = logits.max(axis=1, keepdims=True)
    totals: np.ndarray = np.log(np.exp(logits - largest).sum(axis=1)) + largest[:, 0]
    return totals


def _negative_log_likelihood(logits: np.ndarray, targets: np.ndarray, totals: np.ndarray | None = None) -> np.ndarray:
    """Computes nats [n] from logits [n, vocabulary], and from their `_log_totals` if these are known."""
    if totals is None:
        totals = _log_totals(logits)
    return totals - logits[np.arange(len(targets)), targets]


def _pieces(documents: Iterable[Sequence[int]], length: int) -> Iterator[Sequence[int]]:
    for document in documents:
        for start in range(0, max(len(document) - 1, 0), length):
            piece = document[start : start + length]
            if len(piece) > 1:
                yield piece


def _groups(items: Iterable[Item], length: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Groups items so that each group fits into a step; a longer item is a group of its own."""
    group: list[Item] = []
    for item in items:
        if group and sum(map(length, group)) + length(item) > TOKENS_AT_ONCE:
            yield group
            group = []
        group.append(item)
    if group:
        yield group


def _blocks(lengths: Iterable[int], block_size: int) -> list[range]:
    """Assigns consecutive blocks to sequences of these lengths; block 0 stays free."""
    tables, block = [], 1
    for length in lengths:
        count = -(-length // block_size)
        tables.append(range(block, block + count))
        block += count
    return tables
