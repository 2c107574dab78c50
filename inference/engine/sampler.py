"""Chooses the next token from a row of logits: a chain of small pure functions and an explicit seed.

Knows one row at a time, so a row's choice depends only on its own logits, settings and seed. The random number of a
row's n-th token is a function of (seed, n) alone, regardless of other rows.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from inference.engine import flat_choice
from inference.engine.processors import due_processors, processed
from inference.engine.request import Request, TokenLogprob

if TYPE_CHECKING:
    from inference.config import GenerationConfig

# Bits of a seed drawn here: every JSON reader represents such an integer exactly.
SEED_BITS = 53
_WORD = (1 << 64) - 1
_MAGNITUDE, _INDEX = 0x7FFFFFFF, 0xFFFFFFFF
# The lowest temperature used: a difference of float32 numbers divided by it still fits a float64.
COLDEST = 1e-200
# The group size when searching for the largest values: at first only the maximum of each group is compared.
GROUP = 32
# How many of the likeliest tokens to try, in turn, until they are enough to sample from.
HEADS = (256, 4096)


def choose(logits: np.ndarray, request: Request) -> int:
    """Chooses the id of the request's next token.

    Args:
        logits: float32 [vocabulary].
    """
    generation = request.generation
    scores = processed(logits, request)
    if generation.greedy:
        return int(scores.argmax())
    drawn = uniform(request.seed, len(request.output_ids))
    weights = _weights_of_all(scores, generation)
    found = _likeliest(scores, weights, generation, drawn)
    if found is None and weights is not None and not generation.has_cutoff:
        token = flat_choice.pick(scores, weights, drawn, generation.top_p, generation.min_p)
        if token is not None:
            return token
    ids, probabilities = found or _of_all(scores, weights, generation)
    rank = int(probabilities.cumsum().searchsorted(drawn, side="right"))
    return int(ids[min(rank, len(ids) - 1)])


def needs_logits(request: Request, ahead: int = 0) -> bool:
    """Returns whether the next token, or one of the `ahead` after it, needs more than its row's largest logit."""
    generation = request.generation
    if not generation.greedy or generation.logprobs is not None or request.constraint is not None:
        return True
    return bool(due_processors(request)) or bool(ahead and request.processors)


def seed_of(seed: int, row: int, sample: int) -> int:
    """Returns the seed of one sample of one row of a run. The first sample of row 0 gets the run's own seed."""
    if row == sample == 0:
        return seed
    digest = hashlib.blake2b(f"{seed} {row} {sample}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 64 - SEED_BITS


def uniform(seed: int, position: int) -> float:
    """Returns a number in [0, 1) determined by (seed, position). Philox is counter-based (Salmon et al. 2011)."""
    key = np.array([seed & _WORD, seed >> 64 & _WORD], np.uint64)
    return float(np.random.Generator(np.random.Philox(counter=[0, 0, 0, position], key=key)).random())


def distribution(
    scores: np.ndarray, generation: GenerationConfig, enough: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns ids and probabilities to sample from, the likeliest first.

    Applies temperature, top-k, top-p and min-p, then typical sampling and the epsilon and eta cutoffs, as transformers
    orders them. Equal logits are ordered by id, so that the result is reproducible.

    Args:
        scores: [vocabulary].
        enough: return no more tokens once their probabilities add up to more than this.
    """
    weights = _weights_of_all(scores, generation)
    return _likeliest(scores, weights, generation, enough) or _of_all(scores, weights, generation)


def _weights_of_all(scores: np.ndarray, generation: GenerationConfig) -> np.ndarray | None:
    """Returns the weights of the whole vocabulary; None if top-k limits it."""
    if 0 < generation.top_k < scores.size:
        return None
    return _weights(scores, float(scores.max()), generation)


def _likeliest(
    scores: np.ndarray, whole_weights: np.ndarray | None, generation: GenerationConfig, enough: float
) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns the distribution if a small part of the vocabulary decides it, else None.

    A few hundred tokens are nearly always enough, and finding them is far faster than sorting the whole vocabulary.
    """
    if whole_weights is None:
        return None
    if generation.has_cutoff:
        enough = np.inf
    whole = whole_weights.sum()
    # No weight exceeds 1, so reaching the sum takes at least that many tokens.
    least = 0.0 if generation.min_p > 0 else whole * min(generation.top_p, enough if generation.top_p == 1 else 1)
    for count in (head for head in HEADS if least < head < scores.size):
        ids = _largest(scores, count)
        weights = _weights(scores[ids], float(scores[ids[0]]), generation)
        ahead = weights.cumsum()
        if _is_filtered(generation):
            number = _kept(weights, ahead, whole, generation)
            if number < count:
                return _cut_off(ids[:number], weights[:number] / weights[:number].sum(), generation)
        elif ahead[-1] > enough * whole:
            number = int(np.count_nonzero(weights))
            return _cut_off(ids[:number], weights[:number] / whole, generation)
    return None


def _of_all(
    scores: np.ndarray, whole_weights: np.ndarray | None, generation: GenerationConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the whole distribution: sorts all tokens, or as many as top-k keeps."""
    limit = min(generation.top_k or scores.size, scores.size)
    ids = _largest(scores, limit)
    weights = _weights(scores[ids], float(scores[ids[0]]), generation)
    ahead = weights.cumsum()
    whole = ahead[-1] if whole_weights is None else whole_weights.sum()
    number = int(np.count_nonzero(weights))
    if _is_filtered(generation):
        number = _kept(weights, ahead, whole, generation)
        whole = weights[:number].sum()
    return _cut_off(ids[:number], weights[:number] / whole, generation)


def _is_filtered(generation: GenerationConfig) -> bool:
    return generation.top_p < 1 or generation.min_p > 0


def _cut_off(ids: np.ndarray, probabilities: np.ndarray, generation: GenerationConfig) -> tuple[np.ndarray, np.ndarray]:
    """Applies typical sampling, then the epsilon and eta cutoffs."""
    for value, keep in (
        (generation.typical_p % 1, _typical),
        (generation.epsilon_cutoff, _above_epsilon),
        (generation.eta_cutoff, _above_eta),
    ):
        if value:
            kept = keep(probabilities, value)
            ids, probabilities = ids[kept], probabilities[kept] / probabilities[kept].sum()
    return ids, probabilities


def _typical(probabilities: np.ndarray, mass: float) -> np.ndarray:
    """Keeps the fewest tokens with surprisal nearest to the entropy that reach this mass (Meister et al. 2022)."""
    surprise = -np.log(probabilities)
    distance = np.abs(surprise - (probabilities * surprise).sum())
    order = np.argsort(distance, kind="stable")
    last = int(np.count_nonzero(probabilities[order].cumsum() < mass))
    kept = distance <= distance[order[min(last, len(order) - 1)]]
    kept[order[0]] = True
    return kept


def _above_epsilon(probabilities: np.ndarray, epsilon: float) -> np.ndarray:
    """Keeps the tokens of at least this probability, and the likeliest one (Hewitt et al. 2022)."""
    return probabilities >= min(epsilon, probabilities[0])


def _above_eta(probabilities: np.ndarray, epsilon: float) -> np.ndarray:
    """Does the same with a bound that is lower for a flat distribution (Hewitt et al. 2022)."""
    entropy = -(probabilities * np.log(probabilities)).sum()
    return _above_epsilon(probabilities, min(epsilon, np.sqrt(epsilon) * np.exp(-entropy)))


def _kept(weights: np.ndarray, ahead: np.ndarray, whole: float, generation: GenerationConfig) -> int:
    """Returns how many of the likeliest tokens top-p and min-p keep; `ahead` is the running sum of their weights."""
    # A token with a logit of -inf cannot be chosen, whatever top_k is.
    kept = (weights >= generation.min_p) & (weights > 0)
    if generation.top_p < 1:
        # Keep a token if those before it add up to less than top_p; the first is always kept.
        kept &= ahead - weights < generation.top_p * whole
    return int(np.count_nonzero(kept))


def _weights(scores: np.ndarray, best: float, generation: GenerationConfig) -> np.ndarray:
    """Returns probabilities relative to the largest, whose score is `best`."""
    # Subtract first, and use no temperature below COLDEST, so that nothing overflows near 0.
    weights = scores.astype(np.float64)
    # Compute in place: allocating memory for a whole vocabulary costs more than the arithmetic.
    weights -= best
    weights /= max(generation.temperature, COLDEST)
    return np.exp(weights, out=weights)


def token_logprob(logits: np.ndarray, token_id: int, alternatives: int) -> TokenLogprob:
    """Returns the log probability of a token under the model itself, before penalties and filters."""
    shifted = logits.astype(np.float64) - float(logits.max())
    logprobs = shifted - np.log(np.exp(shifted).sum())
    top = _largest(logits, min(alternatives, logits.size)) if alternatives else ()
    # Leave out tokens with a log probability of -inf, which JSON cannot represent.
    alike = tuple((int(i), float(logprobs[i])) for i in top if logprobs[i] > -np.inf)
    return TokenLogprob(token_id, float(logprobs[token_id]), alike)


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Returns the indices of the `count` largest values, the largest first; equal values are ordered by index."""
    indices = np.arange(count) if count == values.size else (values >= _bound(values, count)).nonzero()[0]
    # Sort integers that combine value and index: several times faster than a stable argsort. The bits of a float32 sort
    # like its value once those of negative numbers are flipped; adding 0 turns -0.0 into 0.0.
    bits = (values[indices] + np.float32(0)).view(np.int32).astype(np.int64)
    keys = (np.where(bits < 0, bits ^ _MAGNITUDE, bits) << 32) - indices
    keys.sort()
    return -keys[::-1][:count] & _INDEX


def _bound(values: np.ndarray, count: int) -> np.floating:
    """Returns a bound that at least `count` values reach, and not many more.

    Values are divided into groups: if the maxima of `count` groups reach the bound, at least `count` values do.
    """
    height = min(GROUP, values.size // count)
    width = values.size // height
    maxima = values[: height * width].reshape(height, width).max(axis=0)
    maxima.partition(width - count)
    return maxima[width - count]
