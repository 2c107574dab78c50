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


def choose(logits: np.ndarray, request: Request) -> int:
    """The id of the request's next token.

    Args:
        logits: float32 [vocabulary].
    """
    generation = request.generation
    scores = penalised(logits, request)
    if generation.greedy:
        return int(scores.argmax())
    ids, probabilities = distribution(scores, generation)
    cumulative = np.cumsum(probabilities)
    drawn = uniform(request.seed, len(request.output_ids)) * cumulative[-1]
    return int(ids[min(int(np.searchsorted(cumulative, drawn, side="right")), len(ids) - 1)])


def needs_logits(request: Request) -> bool:
    """Whether the request's next token takes more than the largest logit of its row."""
    generation = request.generation
    return not generation.greedy or generation.logprobs is not None or _is_penalised(request)


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that (seed, position) determines. Philox is counter-based (Salmon et al. 2011)."""
    key = np.array([seed & _WORD, seed >> 64 & _WORD], np.uint64)
    return float(np.random.Generator(np.random.Philox(counter=[0, 0, 0, position], key=key)).random())


def penalised(logits: np.ndarray, request: Request) -> np.ndarray:
    """Logits after the penalties, with the end of sequence barred while the answer is too short."""
    if not _is_penalised(request):
        return logits
    generation = request.generation
    scores = logits.copy()
    if generation.repetition_penalty != 1.0:
        _penalise_repetition(scores, [*request.prompt_ids, *request.output_ids], generation.repetition_penalty)
    if request.output_ids:
        _penalise_counts(scores, request.output_ids, generation)
    if _is_barred(request):
        scores[[token for token in generation.eos_token_id if token < scores.size]] = -np.inf
    return scores


def _is_barred(request: Request) -> bool:
    """Whether the answer is too short to end."""
    return len(request.output_ids) < request.min_new_tokens and bool(request.generation.eos_token_id)


def _is_penalised(request: Request) -> bool:
    generation = request.generation
    weights = (generation.frequency_penalty, generation.presence_penalty)
    return _is_barred(request) or generation.repetition_penalty != 1.0 or any(weights)


def _penalise_repetition(scores: np.ndarray, seen: Sequence[int], penalty: float) -> None:
    """Divides positive logits of tokens that occurred and multiplies negative ones (CTRL: Keskar et al. 2019)."""
    ids = np.unique(np.asarray(seen))
    values = scores[ids]
    scores[ids] = np.where(values > 0, values / penalty, values * penalty)


def _penalise_counts(scores: np.ndarray, generated: Sequence[int], generation: GenerationConfig) -> None:
    """Subtracts a part for each time that a token was generated and one for having been (OpenAI's API reference)."""
    for token, count in Counter(generated).items():
        scores[token] -= generation.frequency_penalty * count + generation.presence_penalty


def distribution(scores: np.ndarray, generation: GenerationConfig) -> tuple[np.ndarray, np.ndarray]:
    """Ids and probabilities to sample from, the likeliest first: temperature, then top-k, top-p and min-p.

    The order of the filters is Hugging Face's. Equal logits are ordered by id, so that the result is reproducible.
    """
    ids = _largest(scores, generation.top_k or scores.size)
    # The difference first, and no temperature under COLDEST, so that nothing overflows near 0.
    below = scores[ids].astype(np.float64) - float(scores[ids[0]])
    probabilities = np.exp(below / max(generation.temperature, COLDEST))
    probabilities /= probabilities.sum()
    # A token stays while those before it do not add up to top_p; the first always does.
    kept = np.cumsum(probabilities) - probabilities < generation.top_p
    kept &= probabilities >= generation.min_p * probabilities[0]
    return ids[kept], probabilities[kept] / probabilities[kept].sum()


def token_logprob(logits: np.ndarray, token_id: int, alternatives: int) -> TokenLogprob:
    """The log probability of a token under the model itself, before penalties and filters."""
    shifted = logits.astype(np.float64) - float(logits.max())
    logprobs = shifted - np.log(np.exp(shifted).sum())
    top = _largest(logits, alternatives) if alternatives else ()
    return TokenLogprob(token_id, float(logprobs[token_id]), tuple((int(i), float(logprobs[i])) for i in top))


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` largest values, the largest first; equal values in the order of their indices."""
    if count >= values.size:
        return np.argsort(-values, kind="stable")
    smallest = np.partition(values, values.size - count)[values.size - count]
    indices = np.flatnonzero(values >= smallest)
    return indices[np.argsort(-values[indices], kind="stable")][:count]
