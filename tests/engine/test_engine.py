"""The engine on a toy model whose tokens are right only where every slot, table and position is."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import ToyModel, logits_of, make_request

from examples import examples
from inference.engine import reference
from inference.engine.engine import Engine
from inference.engine.metrics import RunMetrics
from inference.engine.request import FinishReason, Request
from inference.engine.sampler import choose, token_logprob
from inference.errors import GenerationError, InferenceError, InputError

VOCABULARY = 40
# (settings, seed): what a row may ask for. The ends make answers of many lengths.
KINDS = (
    {"max_new_tokens": 6},
    {"max_new_tokens": 20, "eos_token_id": [3, 7, 11]},
    {"max_new_tokens": 12, "eos_token_id": 5, "ignore_eos": True},
    {"max_new_tokens": 9, "do_sample": True, "temperature": 1.5, "seed": 0},
    {"max_new_tokens": 9, "do_sample": True, "top_p": 0.7, "seed": 1, "repetition_penalty": 1.3},
    {"max_new_tokens": 8, "use_past": False},
    {"max_new_tokens": 7, "use_past": False, "do_sample": True, "seed": 2, "frequency_penalty": 0.5},
    {"max_new_tokens": 15, "eos_token_id": [0, 1, 2, 4], "min_new_tokens": 8},
    {"max_new_tokens": 1},
    {"max_length": 64, "eos_token_id": list(range(0, 40, 3))},
)
# Every other prompt begins as another may, with the same few tokens.
PROMPTS = st.one_of(
    st.lists(st.integers(0, 39), min_size=1, max_size=24),
    st.builds(
        lambda length, end: [*range(length), *end],
        st.sampled_from([1, 4, 8, 12, 16, 23]),
        st.lists(st.integers(0, 1), max_size=2),
    ),
)
ROWS = st.lists(st.tuples(PROMPTS, st.sampled_from(KINDS)), max_size=8)


def naive_answer(request: Request) -> tuple[list[int], FinishReason]:
    """The answer without any cache, batch or engine."""
    while True:
        logits = logits_of([*request.prompt_ids, *request.output_ids], VOCABULARY)
        request.append(choose(logits, request))
        ends = () if request.generation.ignore_eos else request.generation.eos_token_id
        if request.output_ids[-1] in ends:
            return request.output_ids, FinishReason.STOP
        if len(request.output_ids) == request.max_new_tokens:
            return request.output_ids, FinishReason.LENGTH


def requests_of(rows: Sequence[tuple[list[int], dict]]) -> list[Request]:
    requests = [make_request(prompt, str(i), **settings) for i, (prompt, settings) in enumerate(rows)]
    for request in requests:
        request.seed = request.generation.seed or 0
    return requests


def run(model: ToyModel, requests: Sequence[Request], **limits: Any) -> Engine:
    engine = Engine(model, **limits)
    for request in requests:
        engine.add(request)
    for _ in engine.run():
        pass
    assert not engine.busy
    return engine


@given(
    ROWS,
    st.sampled_from([(64, 4), (17, 4), (70, 1), (9, 8), (3, 64)]),
    st.integers(1, 8),
    st.integers(1, 30),
    st.booleans(),
    st.randoms(use_true_random=False),
)
@examples(250)
def test_a_rows_tokens_do_not_depend_on_other_rows(
    rows: list[tuple[list[int], dict]],
    cache: tuple[int, int],
    max_sequences: int,
    max_batch_tokens: int,
    prefix_cache: bool,
    chance: random.Random,
) -> None:
    """Any batch, order, chunk size, with or without shared blocks, and a cache of any size, down to one that holds a
    single row of the longest kind; twice, so that the second run finds what the first has left."""
    expected = [naive_answer(request) for request in requests_of(rows)]
    model = ToyModel(VOCABULARY, num_blocks=cache[0], block_size=cache[1])
    limits = {"max_sequences": max_sequences, "max_batch_tokens": max_batch_tokens, "prefix_cache": prefix_cache}
    for _ in range(2):
        requests = requests_of(rows)
        run(model, chance.sample(requests, len(requests)), **limits)
        assert [(request.output_ids, request.finish_reason) for request in requests] == expected
        assert model.blocks.num_free == model.blocks.capacity
    assert all(len(batch.block_tables) <= max_sequences for batch in model.batches)
    assert all(len(batch.tokens) <= max(max_batch_tokens, max_sequences) for batch in model.batches)


@given(st.lists(st.integers(0, 39), min_size=1, max_size=24), st.sampled_from(KINDS))
def test_the_reference_loop_gives_the_same_answers(prompt: list[int], kind: dict) -> None:
    naive, of_loop, of_engine = requests_of([(prompt, kind)] * 3)
    model = ToyModel(VOCABULARY)
    run(model, [of_engine])
    assert reference.generate(model, of_loop) == of_engine.output_ids == naive_answer(naive)[0]


def test_the_tested_situations_occur() -> None:
    """Rows put back, chunks, several rows a step, shared and copied blocks: in one run, and the tokens are right."""
    rows = [([*range(16), *[i] * (i % 3)], {"max_new_tokens": 30}) for i in range(8)]
    requests, metrics = requests_of(rows), RunMetrics()
    model = ToyModel(VOCABULARY, num_blocks=40, block_size=4)
    run(model, requests, max_sequences=8, max_batch_tokens=11, metrics=metrics)
    assert any(1 < batch.query_index.shape[1] < 16 and len(batch.block_tables) > 1 for batch in model.batches)
    assert [request.output_ids for request in requests] == [naive_answer(r)[0] for r in requests_of(rows)]
    assert metrics.preemptions > 0 and model.copied > 0
    assert metrics.reused_tokens == sum(request.num_reused for request in requests) >= 6 * 15


def test_blocks_survive_the_engine_and_are_released_after_a_failure() -> None:
    """A chat: each turn begins with all that was said before."""
    model, said = ToyModel(VOCABULARY), [1, 2, 3]
    for turn in range(3):
        metrics = RunMetrics()
        request = make_request(said, max_new_tokens=10)
        run(model, [request], metrics=metrics)
        assert metrics.reused_tokens == (len(said) - 3) // 4 * 4 == [0, 12, 24][turn]
        said = [*said, *request.output_ids, 7, 8]
    engine = Engine(model)
    engine.add(make_request(said, "a"))
    engine.add(make_request([5], "b"))
    engine.step()
    engine.add(make_request([6], "c"))
    engine.close()
    assert not engine.busy and model.blocks.num_free == model.blocks.capacity


def test_the_reference_loop_leaves_nothing_wrong_behind() -> None:
    """It writes into blocks that the pool has published."""
    model = ToyModel(VOCABULARY)
    first, second, other, naive = requests_of(
        [([1] * 20, KINDS[0])] * 2 + [([2] * 20, KINDS[0])] + [([1] * 20, KINDS[0])]
    )
    run(model, [first])
    reference.generate(model, other)
    run(model, [second])
    assert second.output_ids == naive_answer(naive)[0] and second.num_reused == 0


def test_a_row_joins_while_others_run() -> None:
    first, second, twin = requests_of(
        [([1, 2], {"max_new_tokens": 12}), ([9] * 9, {"max_new_tokens": 5}), ([9] * 9, {"max_new_tokens": 5})]
    )
    model = ToyModel(VOCABULARY)
    engine = Engine(model)
    engine.add(first)
    for _ in range(4):
        assert engine.step() == [first]
    engine.add(second)
    assert engine.step() == [first, second]
    assert [engine.num_running, engine.num_waiting] == [2, 0]
    assert set(engine.run()) == {first, second}
    assert second.output_ids == naive_answer(twin)[0]


def test_finished_rows_are_not_computed() -> None:
    requests = requests_of([([i], {"max_new_tokens": 1 + 3 * i}) for i in range(4)])
    model = ToyModel(VOCABULARY)
    run(model, requests)
    assert [len(batch.block_tables) for batch in model.batches] == [4, 3, 3, 3, 2, 2, 2, 1, 1, 1]
    assert all(batch.query_index.shape[1] == 1 for batch in model.batches), "a row was padded"


def test_use_past_decides_how_much_is_computed() -> None:
    counts = {}
    for use_past in (True, False):
        model = ToyModel(VOCABULARY)
        run(model, [make_request([1, 2, 3], max_new_tokens=4, use_past=use_past)])
        counts[use_past] = [len(batch.tokens) for batch in model.batches]
    assert counts == {True: [3, 1, 1, 1], False: [3, 4, 5, 6]}


def test_requests_without_a_seed_differ_and_those_with_one_do_not() -> None:
    settings = {"max_new_tokens": 20, "do_sample": True, "temperature": 3.0}
    for seed, distinct in ((None, 4), (0, 1), (2**64 - 1, 1)):
        requests = [make_request([1], str(i), **settings, seed=seed) for i in range(4)]
        run(ToyModel(VOCABULARY), requests)
        assert len({tuple(request.output_ids) for request in requests}) == distinct


class TestEnds:
    """How answers end. `greedy` is what the model says after [1, 2, 3]."""

    @pytest.fixture
    def greedy(self) -> list[int]:
        answer, _ = naive_answer(make_request([1, 2, 3], max_new_tokens=30))
        return answer

    def finished(self, prompt: list[int] | None = None, **settings: object) -> Request:
        request = make_request(prompt or [1, 2, 3], **settings)
        run(ToyModel(VOCABULARY), [request])
        return request

    def test_at_the_limit(self, greedy: list[int]) -> None:
        request = self.finished(max_new_tokens=5)
        assert (request.output_ids, request.finish_reason) == (greedy[:5], FinishReason.LENGTH)
        assert request.answer_ids == greedy[:5]

    def test_at_any_of_several_ends(self, greedy: list[int]) -> None:
        place = 4
        end = greedy[place]
        first = greedy.index(end)
        request = self.finished(max_new_tokens=30, eos_token_id=[end, 39 if greedy.count(39) == 0 else 38])
        assert request.output_ids == greedy[: first + 1]
        assert request.answer_ids == greedy[:first]
        assert request.finish_reason is FinishReason.STOP

    def test_an_end_token_at_the_limit(self, greedy: list[int]) -> None:
        first = greedy.index(greedy[3])
        request = self.finished(max_new_tokens=first + 1, eos_token_id=greedy[3])
        assert request.finish_reason is FinishReason.STOP and request.answer_ids == greedy[:first]

    def test_not_at_an_end_that_is_ignored(self, greedy: list[int]) -> None:
        request = self.finished(max_new_tokens=30, eos_token_id=greedy[3], ignore_eos=True)
        assert (request.output_ids, request.finish_reason) == (greedy, FinishReason.LENGTH)
        last = self.finished(max_new_tokens=4, eos_token_id=greedy[3], ignore_eos=True)
        assert last.answer_ids == greedy[:4]

    def test_not_before_the_minimum(self, greedy: list[int]) -> None:
        request = self.finished(max_new_tokens=30, min_new_tokens=10, eos_token_id=sorted(set(greedy)))
        assert len(request.output_ids) > 10 or request.output_ids[-1] not in set(greedy)
        assert not set(request.output_ids[:10]) & set(greedy)

    def test_at_the_end_of_the_context(self) -> None:
        request = self.finished([1] * 60, max_new_tokens=100)
        assert (len(request.output_ids), request.finish_reason) == (4, FinishReason.LENGTH)
        assert len(self.finished([1] * 63).output_ids) == 1

    def test_by_max_length(self) -> None:
        assert len(self.finished([1] * 10, max_length=15).output_ids) == 5

    def test_from_outside(self) -> None:
        running, waiting = make_request([1], "a"), make_request([2], "b")
        metrics = RunMetrics()
        engine = Engine(ToyModel(VOCABULARY), max_sequences=1, metrics=metrics)
        engine.add(running)
        engine.add(waiting)
        engine.step()
        for request in (running, waiting):
            engine.finish(request, FinishReason.CANCELLED)
            engine.finish(request, FinishReason.STOP)
            assert request.finish_reason is FinishReason.CANCELLED
        assert not engine.busy and metrics.requests == 2


def test_logprobs_are_the_models_own() -> None:
    settings = {"max_new_tokens": 6, "do_sample": True, "temperature": 2.0, "repetition_penalty": 1.5, "seed": 4}
    request = make_request([1, 2], **settings, logprobs=3)
    run(ToyModel(VOCABULARY), [request])
    assert len(request.logprobs) == 6
    for place, found in enumerate(request.logprobs):
        logits = logits_of([1, 2, *request.output_ids[:place]], VOCABULARY)
        assert found == token_logprob(logits, request.output_ids[place], 3)
    none = make_request([1, 2], **settings)
    run(ToyModel(VOCABULARY), [none])
    assert none.logprobs == [] and none.output_ids == request.output_ids


@pytest.mark.parametrize(
    ("prompt", "new", "message"),
    [
        ([], 5, "request 0: the prompt has no tokens"),
        ([1] * 64, 1, "do not fit a context of 64"),
        ([1] * 60, 5, "a prompt of 60 tokens and 5 new ones do not fit a context of 64"),
        ([1], 0, "do not fit"),
        ([1] * 40, 10, "needs 49 positions of KV cache, there are 48"),
    ],
)
def test_requests_that_cannot_run(prompt: list[int], new: int, message: str) -> None:
    engine = Engine(ToyModel(VOCABULARY, num_blocks=13, block_size=4))
    request = make_request(prompt)
    request.max_new_tokens = new
    with pytest.raises(InputError, match=message):
        engine.add(request)
    assert not engine.busy


def test_a_rejected_request_does_not_affect_others() -> None:
    engine = Engine(ToyModel(VOCABULARY))
    good, twin = requests_of([([5], KINDS[0])] * 2)
    engine.add(good)
    with pytest.raises(InputError):
        engine.add(make_request([], "bad"))
    assert list(engine.run()) == [good]
    assert good.output_ids == naive_answer(twin)[0]


POISON, CRASH = 39, 38


@given(ROWS, st.sampled_from([(64, 4), (17, 4), (9, 8)]), st.integers(1, 8), st.integers(1, 30), st.booleans())
@examples(150)
def test_a_row_on_which_the_model_fails_fails_alone(
    rows: list[tuple[list[int], dict]], cache: tuple[int, int], sequences: int, most_tokens: int, prefix_cache: bool
) -> None:
    """After one token a row's logits are not numbers, with another one no step can be computed; twice."""

    def expected(request: Request) -> tuple[list[int], FinishReason]:
        found, reason = naive_answer(request)
        past = [*request.prompt_ids, *found[:-1]]
        first = next((i for i, token in enumerate(past) if token in (POISON, CRASH)), None)
        if first is None:
            return found, reason
        return found[: max(first + 1 - len(request.prompt_ids), 0)], FinishReason.ERROR

    model = ToyModel(VOCABULARY, num_blocks=cache[0], block_size=cache[1], poison=POISON, crash=CRASH)
    for _ in range(2):
        requests = requests_of(rows)
        run(model, requests, max_sequences=sequences, max_batch_tokens=most_tokens, prefix_cache=prefix_cache)
        assert [(r.output_ids, r.finish_reason) for r in requests] == [expected(r) for r in requests_of(rows)]
        for request in requests:
            assert (request.error is not None) == (request.finish_reason is FinishReason.ERROR)
            assert request.error is None or re.search("not numbers|RuntimeError: the graph", str(request.error))
        assert model.blocks.num_free == model.blocks.capacity


def test_blocks_of_a_failed_row_are_not_shared() -> None:
    model = ToyModel(VOCABULARY, poison=POISON)
    shared = list(range(8))
    run(model, [make_request(shared, max_new_tokens=1)])
    assert model.blocks.num_published == 2
    bad = make_request([*shared, *range(8, 16), POISON, 1, 2, 3])
    run(model, [bad])
    assert isinstance(bad.error, GenerationError) and bad.error.exit_code == 1
    assert re.search(r"not numbers for request 0.*checkpoint is damaged", str(bad.error))
    assert bad.num_reused == 8 and model.blocks.num_published == 2


@pytest.mark.parametrize("error", [InferenceError("rank 1 is gone"), MemoryError(), RuntimeError("no device")])
def test_a_failure_that_no_row_causes_ends_all_rows(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ToyModel(VOCABULARY)
    engine = Engine(model)
    for request in requests_of([([1], {}), ([2], {})]):
        engine.add(request)
    model.is_broken = True

    def step(batch: Any) -> Any:
        raise error

    monkeypatch.setattr(model, "step", step)
    with pytest.raises(type(error)):
        engine.step()
    assert engine.num_running == 2
    engine.close()
    assert model.blocks.num_free == model.blocks.capacity


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_single_bad_logit_is_detected(bad: float) -> None:
    class OneBad(ToyModel):
        def _logits(self, batch, token):
            logits = super()._logits(batch, token)
            logits[7] = bad
            return logits

    engine = Engine(OneBad(VOCABULARY))
    request = make_request([1])
    engine.add(request)
    assert engine.step() == [request] and "not numbers" in str(request.error)


def test_metrics_count_the_work_done() -> None:
    metrics = RunMetrics()
    requests = requests_of([([1] * 10, {"max_new_tokens": 5}), ([2] * 3, {"max_new_tokens": 2})])
    run(ToyModel(VOCABULARY), requests, metrics=metrics)
    assert (metrics.requests, metrics.prompt_tokens, metrics.completion_tokens) == (2, 13, 7)
    # The first step prefills both; in the others a row that runs gives a token.
    assert metrics.decode_tokens == 7 - 2
    assert metrics.ttft_seconds.count == metrics.row_seconds.count == 2 and metrics.ttft > 0
    assert metrics.prefill_rate > 0 and metrics.decode_rate > 0
    for request in requests:
        assert 0 < request.timing.ttft <= request.timing.total
    figures = metrics.as_dict()
    assert figures["completion_tokens"] == 7 and figures["peak_memory_bytes"] > 2**20
    assert RunMetrics().ttft is None and RunMetrics().prefill_rate == RunMetrics().decode_rate == 0
