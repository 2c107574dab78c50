"""Chooses the next token from a row of logits: a chain of small pure functions and an explicit seed.

Knows one row at a time, so that a row's choice depends on nothing but its own logits, settings and seed. The random
number of a row's n-th token is a function of (seed, n) alone: it does not matter what ran before it or beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from inference.engine.request import Request, TokenLogprob
from inference.errors import GenerationError

if TYPE_CHECKING:
    from inference.config import GenerationConfig

_WORD = (1 << 64) - 1
_MAGNITUDE, _INDEX = 0x7FFFFFFF, 0xFFFFFFFF
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
    scores = penalized(logits, request)
    if generation.greedy:
        return int(scores.argmax())
    drawn = uniform(request.seed, len(request.output_ids))
    ids, probabilities = distribution(scores, generation, drawn)
    rank = int(probabilities.cumsum().searchsorted(drawn, side="right"))
    return int(ids[min(rank, len(ids) - 1)])


def needs_logits(request: Request) -> bool:
    """Whether the request's next token takes more than the largest logit of its row."""
    generation = request.generation
    return not generation.greedy or generation.logprobs is not None or _is_penalized(request)


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that (seed, position) determines. Philox is counter-based (Salmon et al. 2011)."""
    key = np.array([seed & _WORD, seed >> 64 & _WORD], np.uint64)
    return float(np.random.Generator(np.random.Philox(counter=[0, 0, 0, position], key=key)).random())


def penalized(logits: np.ndarray, request: Request) -> np.ndarray:
    """Logits after the penalties, with the end of sequence barred while the answer is too short.

    Raises:
        GenerationError: no number is left to choose by.
    """
    if not _is_penalized(request):
        return logits
    generation = request.generation
    scores = logits.copy()
    with np.errstate(all="ignore"):
        if generation.repetition_penalty != 1.0:
            _penalize_repetition(scores, [*request.prompt_ids, *request.output_ids], generation.repetition_penalty)
        if request.output_ids:
            _penalize_counts(scores, request.output_ids, generation)
    if _is_barred(request):
        scores[[token for token in generation.eos_token_id if token < scores.size]] = -np.inf
    if not np.isfinite(scores.max()):
        raise GenerationError(
            f"request {request.request_id}: its penalties leave no number to choose the next token by",
            "give milder ones, or a lower min_new_tokens",
        )
    return scores


def _is_barred(request: Request) -> bool:
    """Whether the answer is too short to end."""
    return len(request.output_ids) < request.min_new_tokens and bool(request.generation.eos_token_id)


def _is_penalized(request: Request) -> bool:
    generation = request.generation
    weights = (generation.frequency_penalty, generation.presence_penalty)
    return _is_barred(request) or generation.repetition_penalty != 1.0 or any(weights)


def _penalize_repetition(scores: np.ndarray, seen: Sequence[int], penalty: float) -> None:
    """Divides positive logits of tokens that occurred and multiplies negative ones (CTRL: Keskar et al. 2019)."""
    ids = np.unique(np.asarray(seen))
    values = scores[ids]
    scores[ids] = np.where(values > 0, values / penalty, values * penalty)


def _penalize_counts(scores: np.ndarray, generated: Sequence[int], generation: GenerationConfig) -> None:
    """Subtracts a part for each time that a token was generated and one for having been (OpenAI's API reference)."""
    for token, count in Counter(generated).items():
        scores[token] -= generation.frequency_penalty * count + generation.presence_penalty


def distribution(
    scores: np.ndarray, generation: GenerationConfig, enough: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Ids and probabilities to sample from, the likeliest first: temperature, then top-k, top-p and min-p.

    The order of the filters is Hugging Face's. Equal logits are ordered by id, so that the result is reproducible.

    Args:
        scores: [vocabulary].
        enough: tokens whose probabilities add up to more than this need not be followed by the others.
    """
    limit = min(generation.top_k or scores.size, scores.size)
    total = _weights(scores, float(scores.max()), generation).sum() if limit == scores.size else None
    filtered = generation.top_p < 1 or generation.min_p > 0
    # Of a whole vocabulary a few hundred tokens nearly always decide, and are found far faster than all are sorted.
    heads = [head for head in HEADS if head < limit] if total is not None else []
    for count in (*heads, limit):
        ids = _largest(scores, count)
        weights = _weights(scores[ids], float(scores[ids[0]]), generation)
        ahead = weights.cumsum()
        whole = ahead[-1] if total is None else total
        if filtered:
            number = _kept(weights, ahead, whole, generation)
            if number < count or count == limit:
                return ids[:number], weights[:number] / weights[:number].sum()
        elif ahead[-1] > enough * whole:
            break
    return ids, weights / whole


def _kept(weights: np.ndarray, ahead: np.ndarray, whole: float, generation: GenerationConfig) -> int:
    """How many of the likeliest tokens top-p and min-p leave; `ahead` are the running sums of their weights."""
    kept = weights >= generation.min_p
    if generation.top_p < 1:
        # A token stays while those before it do not add up to top_p; the first always does.
        kept &= ahead - weights < generation.top_p * whole
    return int(np.count_nonzero(kept))


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
    top = _largest(logits, min(alternatives, logits.size)) if alternatives else ()
    return TokenLogprob(token_id, float(logprobs[token_id]), tuple((int(i), float(logprobs[i])) for i in top))


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` largest values, the largest first; equal values in the order of their indices."""
    indices = np.arange(count) if count == values.size else (values >= _bound(values, count)).nonzero()[0]
    # One sort of integers that hold value and index: several times faster than a stable one of indices by value. The
    # bits of a float32 are ordered as its values are, with those of negative numbers turned round; 0 makes -0.0 0.0.
    bits = (values[indices] + np.float32(0)).view(np.int32).astype(np.int64)
    keys = (np.where(bits < 0, bits ^ _MAGNITUDE, bits) << 32) - indices
    keys.sort()
    return -keys[::-1][:count] & _INDEX


def _bound(values: np.ndarray, count: int) -> np.floating:
    """A bound that at least `count` values reach, and not many more.

    Values are put into groups: where `count` groups have a maximum that reaches the bound, so do `count` values.
    """
    height = min(GROUP, values.size // count)
    width = values.size // height
    maxima = values[: height * width].reshape(height, width).max(axis=0)
    maxima.partition(width - count)
    return maxima[width - count]
