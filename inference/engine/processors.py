"""Logits processors: they change a row's logits before a token is chosen, in the same order as in transformers.

Each processor is a small function on the logits and the request, and states when it applies. Source of the formulas and
of the order: `transformers.generation.logits_process` and `GenerationMixin._get_logits_processor`; the frequency and
presence penalties are OpenAI's (API reference). Knows one row at a time; knows nothing about how a token is sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from inference.config import GenerationConfig
from inference.engine.request import Request
from inference.engine.token_counts import TokenCounts
from inference.errors import GenerationError


@dataclass(frozen=True)
class Processor:
    """One change to the logits.

    Args:
        asked: whether the settings enable it.
        apply: changes the logits [vocabulary] in place.
        due: whether it changes the next token's logits; called only if `asked` is true.
    """

    asked: Callable[[GenerationConfig], object]
    apply: Callable[[np.ndarray, Request], None]
    due: Callable[[Request], object] = lambda request: True


def due_processors(request: Request) -> list[Processor]:
    """Returns the processors that apply to the request's next token, in order."""
    if request.processors is None:
        request.processors = tuple(processor for processor in PROCESSORS if processor.asked(request.generation))
    return [processor for processor in request.processors if processor.due(request)]


def processed(logits: np.ndarray, request: Request) -> np.ndarray:
    """Applies every processor and the request's constraint; returns the same array if nothing changes.

    Args:
        logits: float32 [vocabulary].

    Raises:
        GenerationError: no token is left to choose.
    """
    due = due_processors(request)
    if not due and request.constraint is None:
        return logits
    scores = logits.copy()
    with np.errstate(all="ignore"):
        for processor in due:
            processor.apply(scores, request)
    if request.constraint is not None:
        _mask(scores, request.constraint.allowed())
    if not np.isfinite(scores.max()):
        raise GenerationError(
            f"request {request.request_id}: its penalties and constraints leave no token to choose",
            "give milder penalties, a lower min_new_tokens, or a grammar that the vocabulary can write",
        )
    return scores


def _mask(scores: np.ndarray, allowed: np.ndarray | None) -> None:
    if allowed is not None:
        scores[: len(allowed)][~allowed[: len(scores)]] = -np.inf
        scores[len(allowed) :] = -np.inf


def _counted(request: Request, with_prompt: bool) -> TokenCounts:
    """Updates the counts of the request's tokens and returns them."""
    counts = request.seen if with_prompt else request.generated
    if counts is None:
        counts = TokenCounts(request.prompt_ids if with_prompt else ())
        if with_prompt:
            request.seen = counts
        else:
            request.generated = counts
    for token in request.output_ids[counts.total - (len(request.prompt_ids) if with_prompt else 0) :]:
        counts.add(token)
    return counts


def _within(scores: np.ndarray, ids: Iterable[int]) -> list[int]:
    """Keeps the ids that are in the vocabulary: a list from a model's file may contain others."""
    return [token for token in ids if token < scores.size]


def _bias_tokens(scores: np.ndarray, request: Request) -> None:
    bias = request.generation.logit_bias
    ids = _within(scores, bias)
    scores[ids] += [bias[token] for token in ids]


def _bias_sequences(scores: np.ndarray, request: Request) -> None:
    for sequence, bias in request.generation.sequence_bias:
        if _ends_before_last(request, sequence):
            scores[_within(scores, sequence[-1:])] += bias


def _ends_before_last(request: Request, sequence: Sequence[int]) -> bool:
    """Returns whether the request's tokens end with `sequence` without its last token."""
    before = list(sequence[:-1])
    if not before:
        return True
    # Like transformers, compare only if there are at least as many tokens as the whole sequence has.
    start = request.num_tokens - len(before)
    return request.num_tokens >= len(sequence) and request.tokens(start, len(before)) == before


def _penalize_source(scores: np.ndarray, request: Request) -> None:
    """Makes the prompt's tokens likelier if the penalty is above 1 (for models that stray from the prompt)."""
    source = request.prompt_ids if request.source_ids is None else request.source_ids
    _scale(scores, np.unique(np.asarray(source)), 1 / request.generation.encoder_repetition_penalty)


def _penalize_repetition(scores: np.ndarray, request: Request) -> None:
    """Penalizes tokens that occurred before (CTRL, Keskar et al. 2019)."""
    _scale(scores, _counted(request, with_prompt=True).ids, request.generation.repetition_penalty)


def _scale(scores: np.ndarray, ids: np.ndarray, penalty: float) -> None:
    """Divides positive logits by the penalty and multiplies negative ones."""
    values = scores[ids]
    scores[ids] = np.where(values > 0, values / penalty, values * penalty)


def _penalize_counts(scores: np.ndarray, request: Request) -> None:
    """Subtracts one penalty for each time a token was generated, and another if it was generated at all."""
    generation, counted = request.generation, _counted(request, with_prompt=False)
    penalties = generation.frequency_penalty * counted.counts + generation.presence_penalty
    scores[counted.ids] = scores[counted.ids].astype(np.float64) - penalties


def _bar_repeated_ngrams(scores: np.ndarray, request: Request) -> None:
    size = request.generation.no_repeat_ngram_size
    tokens = [*request.prompt_ids, *request.output_ids]
    _bar(scores, _completions(tokens, tokens, size))


def _bar_ngrams_of_source(scores: np.ndarray, request: Request) -> None:
    size = request.generation.encoder_no_repeat_ngram_size
    tokens = [*request.prompt_ids, *request.output_ids]
    _bar(scores, _completions(request.source_ids or request.prompt_ids, tokens, size))


def _completions(text: Sequence[int], tokens: Sequence[int], size: int) -> np.ndarray:
    """Returns the tokens that follow the last `size - 1` of `tokens` anywhere in `text`."""
    before = size - 1
    if len(tokens) < before or len(text) < size:
        return np.empty(0, np.int64)
    array = np.asarray(text)
    found = np.ones(len(text) - before, bool)
    for offset, token in enumerate(tokens[len(tokens) - before :]):
        found &= array[offset : offset + len(found)] == token
    return array[before:][found]


def _bar(scores: np.ndarray, ids: np.ndarray) -> None:
    scores[ids] = -np.inf


def _bar_bad_words(scores: np.ndarray, request: Request) -> None:
    generation = request.generation
    for words in generation.bad_words_ids:
        # Like transformers, ignore an end-of-sequence token that is listed as a bad word.
        if not (len(words) == 1 and words[0] in generation.eos_token_id) and _ends_before_last(request, words):
            scores[_within(scores, words[-1:])] = -np.inf


def _bar_end(scores: np.ndarray, request: Request) -> None:
    scores[_within(scores, request.generation.eos_token_id)] = -np.inf


def is_too_short_to_end(request: Request) -> bool:
    return len(request.output_ids) < request.min_new_tokens and bool(request.generation.eos_token_id)


def _force(scores: np.ndarray, ids: Sequence[int]) -> None:
    """Allows only these tokens."""
    kept = _within(scores, ids)
    scores[:] = -np.inf
    scores[kept] = 0


def _force_begin(scores: np.ndarray, request: Request) -> None:
    token = request.generation.forced_bos_token_id
    assert token is not None
    _force(scores, [token])


def _force_end(scores: np.ndarray, request: Request) -> None:
    _force(scores, request.generation.forced_eos_token_id)


def _favor_end(scores: np.ndarray, request: Request) -> None:
    """Raises the logits of the end-of-sequence tokens more and more once the answer is longer than `start` tokens."""
    assert request.generation.exponential_decay_length_penalty is not None
    start, factor = request.generation.exponential_decay_length_penalty
    ids = _within(scores, request.generation.eos_token_id)
    scores[ids] += np.abs(scores[ids]) * (factor ** (len(request.output_ids) - start) - 1)


def _is_long(request: Request) -> bool:
    penalty = request.generation.exponential_decay_length_penalty
    return penalty is not None and len(request.output_ids) > penalty[0]


def _bar_suppressed(scores: np.ndarray, request: Request) -> None:
    scores[_within(scores, request.generation.suppress_tokens)] = -np.inf


def _bar_suppressed_at_begin(scores: np.ndarray, request: Request) -> None:
    scores[_within(scores, request.generation.begin_suppress_tokens)] = -np.inf


def _begins(request: Request) -> bool:
    """Returns whether the next token is the first one that is not forced."""
    forced = request.generation.forced_bos_token_id is not None and len(request.prompt_ids) == 1
    return len(request.output_ids) == int(forced)


PROCESSORS = (
    Processor(lambda settings: settings.logit_bias, _bias_tokens),
    Processor(lambda settings: settings.sequence_bias, _bias_sequences),
    Processor(lambda settings: settings.encoder_repetition_penalty != 1, _penalize_source),
    Processor(lambda settings: settings.repetition_penalty != 1, _penalize_repetition),
    Processor(
        lambda settings: settings.frequency_penalty or settings.presence_penalty,
        _penalize_counts,
        lambda request: request.output_ids,
    ),
    Processor(lambda settings: settings.no_repeat_ngram_size, _bar_repeated_ngrams),
    Processor(lambda settings: settings.encoder_no_repeat_ngram_size, _bar_ngrams_of_source),
    Processor(lambda settings: settings.bad_words_ids, _bar_bad_words),
    Processor(lambda settings: settings.eos_token_id, _bar_end, is_too_short_to_end),
    Processor(
        lambda settings: settings.forced_bos_token_id is not None,
        _force_begin,
        lambda request: request.num_tokens == 1,
    ),
    Processor(
        lambda settings: settings.forced_eos_token_id,
        _force_end,
        lambda request: len(request.output_ids) == request.max_new_tokens - 1,
    ),
    Processor(lambda settings: settings.exponential_decay_length_penalty, _favor_end, _is_long),
    Processor(lambda settings: settings.suppress_tokens, _bar_suppressed),
    Processor(lambda settings: settings.begin_suppress_tokens, _bar_suppressed_at_begin, _begins),
)
