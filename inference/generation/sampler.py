"""Chooses the next token from a row of logits: a chain of small pure functions and an explicit seed.

Knows one row at a time, so that a row's choice depends on nothing but its own logits, settings and seed. The random
number of a row's n-th token is a function of (seed, n) alone: it does not matter what ran before it or beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from inference.request import Request, TokenLogprob

if TYPE_CHECKING:
    from inference.config import GenerationConfig

_WORD = (1 << 64) - 1
# A difference of float32 numbers divided by this is still a float64.
COLDEST = 1e-200
# Values of which only the largest is looked at first, where the largest of all are sought.
GROUP = 32
# How many of the likeliest tokens to look at, one after the other, until they decide.
HEADS = (256, 4096)


def choose(logits: np.ndarray, request: Request) -> int:
    """The id of the request's next token.

    Args:
        logits: float32 [vocabulary].
    """
    generation = request.generation
    scores = penalised(logits, request)
    if generation.greedy:
        return int(scores.argmax())
    drawn = uniform(request.seed, len(request.output_ids))
    ranked, probabilities = distribution(scores, generation, drawn)
    rank = int(np.searchsorted(np.cumsum(probabilities), drawn, side="right"))
    return token_at(scores, ranked, min(rank, len(ranked) - 1))


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that (seed, position) determines. Philox is counter-based (Salmon et al. 2011)."""
    key = np.array([seed & _WORD, seed >> 64 & _WORD], np.uint64)
    return float(np.random.Generator(np.random.Philox(counter=[0, 0, 0, position], key=key)).random())


def penalised(logits: np.ndarray, request: Request) -> np.ndarray:
    """Logits after the penalties, with the end of sequence barred while the answer is too short."""
    generation = request.generation
    barred = len(request.output_ids) < request.min_new_tokens and bool(generation.eos_token_id)
    repeated = generation.repetition_penalty != 1.0
    counted = generation.frequency_penalty != 0.0 or generation.presence_penalty != 0.0
    if not (barred or repeated or counted):
        return logits
    scores = logits.copy()
    if repeated:
        _penalise_repetition(scores, [*request.prompt_ids, *request.output_ids], generation.repetition_penalty)
    if counted and request.output_ids:
        _penalise_counts(scores, request.output_ids, generation)
    if barred:
        scores[[token for token in generation.eos_token_id if token < scores.size]] = -np.inf
    return scores


def _penalise_repetition(scores: np.ndarray, seen: Sequence[int], penalty: float) -> None:
    """Divides positive logits of tokens that occurred and multiplies negative ones (CTRL: Keskar et al. 2019)."""
    ids = np.unique(np.asarray(seen))
    values = scores[ids]
    scores[ids] = np.where(values > 0, values / penalty, values * penalty)


def _penalise_counts(scores: np.ndarray, generated: Sequence[int], generation: GenerationConfig) -> None:
    """Subtracts a part for each time that a token was generated and one for having been (OpenAI's API reference)."""
    for token, count in Counter(generated).items():
        scores[token] -= generation.frequency_penalty * count + generation.presence_penalty


def distribution(
    scores: np.ndarray, generation: GenerationConfig, enough: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and probabilities to sample from, the likeliest first: temperature, then top-k, top-p and min-p.

    The order of the filters is Hugging Face's. `token_at` tells whose scores they are.

    Args:
        scores: [vocabulary].
        enough: tokens whose probabilities add up to more than this need not be followed by the others.
    """
    best, size = float(scores.max()), scores.size
    limit = min(generation.top_k or size, size)
    total = _weights(scores, best, generation).sum() if limit == size else None
    filtered = generation.top_p < 1 or generation.min_p > 0
    # Of a whole vocabulary a few hundred tokens nearly always decide, and are found far faster than all are sorted.
    for count in (limit,) if limit < size else (*(head for head in HEADS if head < size), size):
        ranked = _largest(scores, count)
        weights = _weights(ranked, best, generation)
        ahead = np.cumsum(weights)
        total = ahead[-1] if total is None else total
        kept = weights >= generation.min_p
        if generation.top_p < 1:
            # A token stays while those before it do not add up to top_p; the first always does.
            kept &= ahead - weights < generation.top_p * total
        number = int(np.count_nonzero(kept))
        if filtered and (number < count or count == limit):
            return ranked[:number], weights[:number] / weights[:number].sum()
        if not filtered and ahead[-1] > enough * total:
            break
    return ranked, weights / total


def token_at(scores: np.ndarray, ranked: np.ndarray, rank: int) -> int:
    """The id whose score is `ranked[rank]`, of `scores` in falling order; equal scores are ranked by id."""
    equals = np.flatnonzero(scores == ranked[rank])
    return int(equals[rank - int(np.argmax(ranked == ranked[rank]))])


def _weights(scores: np.ndarray, best: float, generation: GenerationConfig) -> np.ndarray:
    """Probabilities as multiples of the largest, whose score is `best`."""
    # The difference first, and no temperature under COLDEST, so that nothing overflows near 0.
    weights = scores.astype(np.float64)
    # In place: fresh memory for a whole vocabulary costs more than the arithmetic.
    weights -= best
    weights /= max(generation.temperature, COLDEST)
    return np.exp(weights, out=weights)


def token_logprob(logits: np.ndarray, token_id: int, alternatives: int) -> TokenLogprob:
    """The log probability of a token under the model itself, before penalties and filters."""
    shifted = logits.astype(np.float64) - float(logits.max())
    logprobs = shifted - np.log(np.exp(shifted).sum())
    top: list[int] = []
    if alternatives:
        ranked = _largest(logits, min(alternatives, logits.size))
        top = [token_at(logits, ranked, rank) for rank in range(len(ranked))]
    return TokenLogprob(token_id, float(logprobs[token_id]), tuple((i, float(logprobs[i])) for i in top))


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """The `count` largest values, in falling order."""
    candidates = values if count == values.size else values[values >= _bound(values, count)]
    return np.sort(candidates)[::-1][:count]


def _bound(values: np.ndarray, count: int) -> float:
    """A bound that at least `count` values reach, and not many more.

    Values are put into groups: where `count` groups have a maximum that reaches the bound, so do `count` values.
    """
    height = min(GROUP, values.size // count)
    width = values.size // height
    maxima = values[: height * width].reshape(height, width).max(axis=0)
    return float(np.partition(maxima, width - count)[width - count])
