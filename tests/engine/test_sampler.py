"""The sampler: each filter against a naive one, penalties against their formulae, and what a seed decides."""

from __future__ import annotations

import math
import warnings
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import make_request

from examples import examples
from inference.config import GenerationConfig
from inference.engine import flat_choice
from inference.engine.processors import processed
from inference.engine.sampler import choose, distribution, token_logprob, uniform
from inference.errors import GenerationError

# Quarters, so that equal logits occur.
LOGITS = st.lists(st.integers(-40, 40).map(lambda n: n / 4), min_size=1, max_size=30).map(
    lambda values: np.array(values, np.float32)
)
FILTERS = st.fixed_dictionaries(
    {
        "temperature": st.floats(0.05, 4),
        "top_k": st.integers(0, 35),
        "top_p": st.floats(0.01, 1),
        "min_p": st.floats(0, 1),
    }
)


def naive_distribution(logits: np.ndarray, settings: GenerationConfig) -> dict[int, float]:
    """Temperature, top-k, top-p, min-p one after the other, as the words say."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    if settings.top_k:
        order = order[: settings.top_k]
    best = float(max(logits))
    weights = {i: math.exp((float(logits[i]) - best) / settings.temperature) for i in order}
    total = sum(weights.values())
    kept, sum_before = {}, 0.0
    for i in order:
        if sum_before < settings.top_p:
            kept[i] = weights[i] / total
        sum_before += weights[i] / total
    least = settings.min_p * max(kept.values())
    kept = {i: p for i, p in kept.items() if p >= least}
    total = sum(kept.values())
    return {i: p / total for i, p in kept.items()}


def on_an_edge(logits: np.ndarray, settings: GenerationConfig) -> bool:
    """Whether rounding decides if a token stays."""
    loose = {"top_p": min(settings.top_p * (1 + 1e-9), 1), "min_p": settings.min_p * (1 - 1e-9)}
    tight = {"top_p": settings.top_p * (1 - 1e-9), "min_p": min(settings.min_p * (1 + 1e-9), 1)}
    sets = [naive_distribution(logits, settings.updated(**change)).keys() for change in (loose, tight)]
    return sets[0] != sets[1]


@given(LOGITS, FILTERS)
def test_distribution_is_the_naive_one(logits: np.ndarray, filters: dict) -> None:
    generation = GenerationConfig(do_sample=True, **filters)
    if on_an_edge(logits, generation):
        return
    ids, probabilities = distribution(logits, generation)
    expected = naive_distribution(logits, generation)
    assert ids.tolist() == list(expected)
    np.testing.assert_allclose(probabilities, list(expected.values()), rtol=1e-9)


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, [3, 1, 2, 4, 0]),
        ({"top_k": 1}, [3]),
        ({"top_k": 3}, [3, 1, 2]),  # 2 and 4 are equal: the lower id stays
        ({"top_k": 99}, [3, 1, 2, 4, 0]),
        ({"top_k": -1}, [3, 1, 2, 4, 0]),
        ({"top_p": 0.01}, [3]),
        ({"top_p": 0.64}, [3]),
        ({"top_p": 0.65}, [3, 1]),
        ({"min_p": 1.0}, [3]),
        ({"min_p": 0.3}, [3, 1]),
        ({"top_k": 2, "top_p": 0.72}, [3]),  # top_p counts what top_k left
    ],
)
def test_filters_by_hand(settings: dict, kept: list[int]) -> None:
    """Probabilities of ids 0 to 4: 0.01, 0.24, 0.05, 0.65, 0.05; ids 2 and 4 alike."""
    logits = np.log(np.array([0.01, 0.24, 0.05, 0.6449, 0.05], np.float32))
    ids, _ = distribution(logits, GenerationConfig(do_sample=True, **{"top_k": 0, **settings}))
    assert ids.tolist() == kept


@given(
    st.integers(0, 2**32),
    st.sampled_from([300, 5000]),
    st.sampled_from([0.1, 1.0, 8.0]),
    st.sampled_from([{}, {"top_k": 7}, {"top_p": 0.3}, {"top_p": 0.999}, {"min_p": 0.02}]),
    st.sampled_from([0.0, 0.5, 0.999999]),
)
@examples(40)
def test_only_the_decisive_part_of_a_large_vocabulary_is_ranked(
    seed: int, size: int, spread: float, filters: dict, enough: float
) -> None:
    """Flat and steep, with many equals: the same tokens and probabilities as when all are sorted, as far as asked."""
    logits = (np.round(np.random.default_rng(seed).standard_normal(size) * 16) / 16 * spread).astype(np.float32)
    generation = GenerationConfig(do_sample=True, **{"top_k": 0, **filters})
    if on_an_edge(logits, generation):
        return
    ids, probabilities = distribution(logits, generation, enough)
    expected = naive_distribution(logits, generation)
    assert ids.tolist() == list(expected)[: len(ids)]
    np.testing.assert_allclose(probabilities, list(expected.values())[: len(ids)], rtol=1e-9)
    assert len(ids) == len(expected) or (not filters and probabilities.sum() > enough)


def test_equal_logits_are_ordered_by_id_for_any_sign_and_size() -> None:
    logits = np.array([-0.0, 1, 0.0, -np.inf, 3e38, -3e38, 3e38, 1, -np.inf, -1e-40, 1e-40, -0.0], np.float32)
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    for count in range(1, len(logits) + 1):
        assert [i for i, _ in token_logprob(logits, 0, count).top] == [i for i in order[:count] if logits[i] > -np.inf]


@pytest.mark.parametrize("temperature", [0.001, 1e-40, 1e-300])
def test_a_temperature_near_zero_is_greedy(temperature: float) -> None:
    logits = np.array([1, 3, 2, -1e30], np.float32)
    ids, probabilities = distribution(logits, GenerationConfig(do_sample=True, temperature=temperature))
    assert ids[0] == 1 and probabilities[0] == 1


@given(LOGITS, st.integers(0, 5))
def test_greedy_takes_the_largest_and_the_first_of_equals(logits: np.ndarray, seed: int) -> None:
    for greedy in ({"do_sample": False}, {"do_sample": True, "temperature": 0.0}, {"temperature": 0}):
        request = make_request([1], **greedy, top_k=3, top_p=0.5)
        request.seed = seed
        assert choose(logits, request) == max(range(len(logits)), key=lambda i: (logits[i], -i))


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**63, 2**64 - 1])
def test_every_seed_has_an_effect(seed: int) -> None:
    assert [uniform(seed, n) for n in range(50)] == [uniform(seed, n) for n in range(50)]
    assert len({uniform(seed, n) for n in range(50)}) == 50
    assert [uniform(seed, n) for n in range(50)] != [uniform(seed ^ 3, n) for n in range(50)]


def test_random_numbers_are_well_spread() -> None:
    """Means, quarters and neighbors of 4000 numbers, within five standard deviations."""
    for numbers in (
        np.array([uniform(0, n) for n in range(4000)]),
        np.array([uniform(seed, 0) for seed in range(4000)]),
        np.array([uniform(seed, 17) for seed in range(0, 2**40, 2**28)]),
    ):
        assert ((numbers >= 0) & (numbers < 1)).all()
        deviation = 5 / math.sqrt(len(numbers))
        assert abs(numbers.mean() - 0.5) < deviation * math.sqrt(1 / 12)
        assert np.abs(np.histogram(numbers, 4, (0, 1))[0] / len(numbers) - 0.25).max() < deviation * 0.44
        assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < deviation


def test_samples_follow_the_distribution() -> None:
    logits = np.log(np.array([0.1, 0.2, 0.3, 0.4], np.float32))
    request = make_request([1], do_sample=True, temperature=1.0, context=10_000)
    counts: Counter[int] = Counter()
    for _ in range(4000):
        token = choose(logits, request)
        counts[token] += 1
        request.output_ids.append(token)
    for token, probability in enumerate((0.1, 0.2, 0.3, 0.4)):
        assert abs(counts[token] / 4000 - probability) < 5 * math.sqrt(probability * (1 - probability) / 4000)


def test_a_sample_depends_only_on_the_seed_and_the_position() -> None:
    logits = np.zeros(1000, np.float32)
    first, second = (make_request([1], do_sample=True) for _ in range(2))
    first.seed = second.seed = 11
    other = make_request([1, 2, 3], do_sample=True)
    other.seed = 12
    taken = [choose(logits, first)]
    for _ in range(7):
        choose(logits, other)
    assert choose(logits, second) == taken[0] != choose(logits, other)


@given(LOGITS, st.data())
def test_repetition_penalty(logits: np.ndarray, data: st.DataObject) -> None:
    """Keskar et al. 2019: a positive logit is divided, a negative one multiplied, once, for prompt and answer."""
    ids = st.lists(st.integers(0, len(logits) - 1), max_size=8)
    penalty = data.draw(st.floats(0.2, 3))
    request = make_request([*data.draw(ids), 0], repetition_penalty=penalty)
    request.output_ids = data.draw(ids)
    seen = {*request.prompt_ids, *request.output_ids}
    expected = [
        (x / penalty if x > 0 else x * penalty) if i in seen else x for i, x in enumerate(logits.astype(np.float64))
    ]
    before = logits.copy()
    np.testing.assert_allclose(processed(logits, request), expected, rtol=1e-6)
    assert (logits == before).all(), "the model's own logits are changed"


@given(LOGITS, st.floats(-2, 2), st.floats(-2, 2), st.data())
def test_frequency_and_presence_penalty(
    logits: np.ndarray, frequency: float, presence: float, data: st.DataObject
) -> None:
    """OpenAI's formula: logit - count * frequency - (count > 0) * presence, of the answer's tokens alone."""
    request = make_request([0], frequency_penalty=frequency, presence_penalty=presence)
    request.output_ids = data.draw(st.lists(st.integers(0, len(logits) - 1), max_size=8))
    counts = Counter(request.output_ids)
    expected = [x - counts[i] * frequency - (counts[i] > 0) * presence for i, x in enumerate(logits)]
    np.testing.assert_allclose(processed(logits, request), expected, rtol=1e-5, atol=1e-5)


def test_penalties_change_the_choice() -> None:
    logits = np.array([2.0, 1.9, -5.0], np.float32)
    for setting in ({"repetition_penalty": 1.2}, {"frequency_penalty": 0.2}, {"presence_penalty": 0.2}):
        request = make_request([2], **setting)
        assert choose(logits, request) == 0
        request.output_ids = [0]
        assert choose(logits, request) == 1


def test_the_end_token_is_excluded_while_the_answer_is_too_short() -> None:
    logits = np.array([1, 9, 2, 8], np.float32)
    request = make_request([0], eos_token_id=[1, 3], min_new_tokens=2)
    assert [choose(logits, request)] == [2]
    request.output_ids = [2]
    assert choose(logits, request) == 2
    request.output_ids = [2, 2]
    assert choose(logits, request) == 1
    sampled = make_request([0], eos_token_id=[1, 3], min_new_tokens=9, do_sample=True, temperature=50.0)
    tokens = {choose(logits, sampled) for sampled.seed in range(40)}
    assert tokens == {0, 2}


def test_min_length_counts_the_prompt() -> None:
    logits = np.array([1, 9], np.float32)
    request = make_request([0, 0, 0], eos_token_id=1, min_length=5)
    assert request.min_new_tokens == 2
    assert choose(logits, request) == 0
    assert make_request([0] * 7, eos_token_id=1, min_length=5).min_new_tokens == 0


def test_an_end_token_outside_the_vocabulary_is_ignored() -> None:
    request = make_request([0], eos_token_id=[1, 99], min_new_tokens=2)
    assert choose(np.array([1, 9], np.float32), request) == 0


@given(LOGITS, st.integers(0, 20), st.data())
def test_logprobs(logits: np.ndarray, alternatives: int, data: st.DataObject) -> None:
    """They are those of the whole vocabulary, add up to 1, and the best come first, equals by id."""
    token = data.draw(st.integers(0, len(logits) - 1))
    exact = [float(x) - math.log(math.fsum(math.exp(float(y)) for y in logits)) for x in logits]
    found = token_logprob(logits, token, alternatives)
    assert found.token_id == token
    assert found.logprob == pytest.approx(exact[token], abs=1e-9)
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:alternatives]
    assert [i for i, _ in found.top] == order
    assert [p for _, p in found.top] == pytest.approx([exact[i] for i in order], abs=1e-9)
    everything = token_logprob(logits, token, len(logits)).top
    assert math.fsum(math.exp(p) for _, p in everything) == pytest.approx(1)


def test_logprobs_of_extreme_logits() -> None:
    found = token_logprob(np.array([1e30, 0, -np.inf], np.float32), 1, 2)
    assert found.logprob == pytest.approx(-1e30)
    assert found.top[0] == (0, 0.0)


@pytest.mark.parametrize(
    "settings", [{"repetition_penalty": 1e-300}, {"eos_token_id": [0, 1, 2, 3], "min_new_tokens": 3}]
)
def test_penalties_that_leave_no_finite_logit(settings: dict) -> None:
    """Whatever is done with them, no warning of numpy's is printed and no token is made up."""
    for more in ({}, {"do_sample": True}):
        request = make_request([1, 2], max_new_tokens=9, **settings, **more)
        with warnings.catch_warnings(), pytest.raises(GenerationError, match="leave no token to choose; give milder"):
            warnings.simplefilter("error")
            choose(np.array([1, 2, -3, 4], np.float32), request)


@pytest.mark.parametrize("spread", [0.02, 0.3, 2.0])
@pytest.mark.parametrize(
    "filters", [{}, {"top_p": 0.9}, {"top_p": 0.999, "min_p": 0.3}, {"min_p": 0.5}, {"top_p": 0.5}]
)
def test_from_a_flat_distribution_the_same_token_is_chosen_as_when_all_are_sorted(spread: float, filters: dict) -> None:
    """With equal logits, zeros of both signs, and tokens that cannot be chosen."""
    random = np.random.default_rng(3)
    logits = (np.round(random.standard_normal(30000) * 512) / 512 * spread).astype(np.float32)
    logits[random.integers(0, len(logits), 300)] = -np.inf
    logits[:50] *= 0
    logits[50:60] = np.float32(-0.0)
    generation = GenerationConfig(do_sample=True, top_k=0, temperature=0.8, **filters)
    ids, probabilities = distribution(logits, generation)
    sums = probabilities.cumsum()
    for seed in range(25):
        request = make_request([1], do_sample=True, top_k=0, temperature=0.8, seed=seed, **filters)
        rank = int(sums.searchsorted(uniform(request.seed, 0), side="right"))
        assert choose(logits, request) == ids[min(rank, len(ids) - 1)]


def test_a_draw_at_the_edge_between_two_tokens_is_left_to_the_exact_sum() -> None:
    logits, weights = np.zeros(8, np.float32), np.ones(8)
    assert [flat_choice.pick(logits, weights, drawn, 1.0, 0.0) for drawn in (0.2, 0.5, 0.9)] == [1, None, 7]
    assert flat_choice.pick(logits, weights, 0.3, 0.5, 0.0) is None
    assert flat_choice.pick(logits, weights, 0.3, 0.4, 0.0) == 1
