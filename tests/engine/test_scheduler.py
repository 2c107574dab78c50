"""The scheduler alone: whose blocks are whose, what goes into a step, what is shared, and that everything finishes."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples import examples
from inference.config import GenerationConfig
from inference.engine import scheduler as scheduler_module
from inference.engine.request import FinishReason, Request
from inference.engine.scheduler import Scheduled, Scheduler
from inference.errors import InputError
from inference.models.block_pool import NULL_BLOCK, BlockPool

GENERATION = GenerationConfig()


def make_scheduler(
    num_blocks: int, block_size: int, max_sequences: int, max_batch_tokens: int, prefix_cache: bool = False
) -> Scheduler:
    return Scheduler(BlockPool(num_blocks, block_size), max_sequences, max_batch_tokens, prefix_cache)


def make_request(name: int, prompt: int | list[int], new: int, generation: GenerationConfig = GENERATION) -> Request:
    return Request(str(name), prompt if isinstance(prompt, list) else [1] * prompt, generation, new)


def check_blocks(scheduler: Scheduler, requests: list[Request]) -> None:
    """No block is lost, or the null block, or of two rows without need; a request that does not run holds none."""
    held = Counter(block for request in requests for block in request.block_table)
    assert scheduler.prefix_cache or all(count == 1 for count in held.values()), "a block is in two tables"
    assert len(held) + scheduler.pool.num_free == scheduler.pool.capacity, "blocks are lost"
    assert all(NULL_BLOCK < block <= scheduler.pool.capacity for block in held)
    content: dict[int, list[int]] = {}
    for request in requests:
        assert len(set(request.block_table)) == len(request.block_table)
        size = scheduler.pool.block_size
        for index in range(min(request.num_cached // size, len(request.block_table))):
            tokens = content.setdefault(request.block_table[index], request.tokens(0, (index + 1) * size))
            assert tokens == request.tokens(0, (index + 1) * size), "two rows share a block and not its tokens"
    for request in requests:
        assert not request.block_table or request in scheduler.running
        assert request.finished or request.num_cached <= len(request.block_table) * scheduler.pool.block_size


def check_plan(scheduler: Scheduler, planned: list[Scheduled]) -> None:
    """The step's limits hold, and every table holds what the step will write."""
    assert planned, "there is work, and the plan is empty"
    assert len({item.request for item in planned}) == len(planned) <= scheduler.max_sequences
    assert sum(item.count for item in planned) <= scheduler.max_batch_tokens
    assert [item.request for item in planned] == list(scheduler.running)
    written: set[int] = set()
    for item in planned:
        assert 1 <= item.count <= item.request.num_uncached
        room = len(item.request.block_table) * scheduler.pool.block_size
        assert room >= item.request.num_cached + item.count
        first, end = item.request.num_cached, item.request.num_cached + item.count
        size = scheduler.pool.block_size
        fresh = set(item.request.block_table[first // size : (end - 1) // size + 1])
        assert not fresh & written, "two rows write into a block"
        written |= fresh
        assert item.reaches_end == (item.count == item.request.num_uncached)


@dataclass
class Run:
    """What an engine does with a scheduler, without a model: every row that reaches its end gets a token."""

    scheduler: Scheduler
    requests: list[Request] = field(default_factory=list)
    generation: GenerationConfig = GENERATION
    put_back: int = 0
    computed: int = 0

    def add(self, prompt: int | list[int], new: int) -> Request:
        request = make_request(len(self.requests), prompt, new, self.generation)
        self.scheduler.add(request)
        self.requests.append(request)
        return request

    def step(self) -> None:
        before = set(self.scheduler.running)
        planned = self.scheduler.plan()
        put_back = before - set(self.scheduler.running)
        self.put_back += len(put_back)
        self.computed += sum(item.count for item in planned)
        assert not put_back or not set(self.scheduler.running) - before, "a row is put back and another let in"
        check_plan(self.scheduler, planned)
        check_blocks(self.scheduler, self.requests)
        for item in planned:
            request, at_end = item.request, item.reaches_end
            self.scheduler.advance(item)
            if at_end:
                request.append(1)
                if not request.generation.use_past:
                    request.num_cached = 0
                if len(request.output_ids) == request.max_new_tokens:
                    request.finish(FinishReason.LENGTH)
                    self.scheduler.finish(request)

    def finish_all(self) -> None:
        # A row is computed again at most once for every token that any other row gets.
        most = sum(r.num_tokens + r.max_new_tokens for r in self.requests) * (len(self.requests) + 1) * 4
        for _ in range(most):
            if not self.scheduler.busy:
                break
            self.step()
        assert not self.scheduler.busy, "the rows do not finish"
        assert self.scheduler.pool.num_free == self.scheduler.pool.capacity
        assert all(len(r.output_ids) == r.max_new_tokens or r.finished for r in self.requests)


SIZES = st.fixed_dictionaries(
    {
        "num_blocks": st.integers(2, 12),
        "block_size": st.integers(1, 5),
        "max_sequences": st.integers(1, 5),
        "max_batch_tokens": st.integers(1, 20),
        "prefix_cache": st.booleans(),
    }
)
# Prompts that are often the beginning of others.
PROMPTS = st.one_of(st.integers(1, 20), st.lists(st.integers(1, 2), min_size=1, max_size=12))
REQUESTS = st.lists(st.tuples(PROMPTS, st.integers(1, 12)), min_size=1, max_size=12)


@given(SIZES, REQUESTS, st.booleans(), st.data())
@examples(300)
def test_every_request_finishes_and_no_block_is_lost(
    sizes: dict, rows: list[tuple[int | list[int], int]], use_past: bool, data: st.DataObject
) -> None:
    """Requests arrive at any time and some are let go of; what can never fit is refused."""
    run = Run(make_scheduler(**sizes), generation=GenerationConfig(use_past=use_past))
    for prompt, new in rows:
        length = len(prompt) if isinstance(prompt, list) else prompt
        if length + new - 1 > run.scheduler.capacity:
            with pytest.raises(InputError, match="positions of KV cache"):
                run.scheduler.add(make_request(99, prompt, new))
            continue
        run.add(prompt, new)
        for _ in range(data.draw(st.integers(0, 3), label="steps")):
            if run.scheduler.busy:
                run.step()
        alive = [request for request in run.requests if not request.finished]
        if alive and data.draw(st.booleans(), label="cancel"):
            gone = data.draw(st.sampled_from(alive), label="which")
            gone.finish(FinishReason.CANCELLED)
            run.scheduler.finish(gone)
            check_blocks(run.scheduler, run.requests)
    run.finish_all()


def test_preemption_happens_in_these_runs() -> None:
    run = Run(make_scheduler(num_blocks=13, block_size=2, max_sequences=4, max_batch_tokens=16))
    for _ in range(4):
        run.add(3, 20)
    run.finish_all()
    assert run.put_back == sum(row.times_put_back for row in run.requests) >= 3


def test_the_youngest_row_is_preempted_and_runs_next() -> None:
    run = Run(make_scheduler(num_blocks=13, block_size=2, max_sequences=3, max_batch_tokens=16))
    first, second, third = run.add(4, 17), run.add(4, 9), run.add(4, 9)
    behind = run.add(1, 1)
    for _ in range(5):
        run.step()
        assert list(run.scheduler.running) == [first, second, third]
    assert list(run.scheduler.waiting) == [behind]
    run.step()  # Each needs a fifth block, and there is none: the youngest gives its four.
    assert list(run.scheduler.running) == [first, second]
    assert list(run.scheduler.waiting) == [third, behind]
    assert (third.num_cached, third.block_table, len(third.output_ids)) == (0, [], 5)
    run.finish_all()


def test_a_row_that_preempts_itself_admits_no_other() -> None:
    run = Run(make_scheduler(num_blocks=10, block_size=2, max_sequences=3, max_batch_tokens=16))
    old, young = run.add(5, 9), run.add(4, 9)
    for _ in range(5):
        run.step()
        assert list(run.scheduler.running) == [old, young]
    small = run.add(1, 1)
    run.step()
    assert list(run.scheduler.running) == [old]
    assert list(run.scheduler.waiting) == [young, small] and young.times_put_back == 1
    run.finish_all()


def test_requests_start_in_the_order_of_their_arrival() -> None:
    run = Run(make_scheduler(num_blocks=4, block_size=4, max_sequences=8, max_batch_tokens=64))
    big, small = run.add(12, 1), run.add(1, 1)
    waiting = run.add(12, 1)
    run.step()
    assert big.finished and not small.finished
    run.step()
    assert small.finished and not waiting.finished
    run.finish_all()


def test_a_long_prompt_runs_in_chunks_without_stalling_other_rows() -> None:
    run = Run(make_scheduler(num_blocks=100, block_size=4, max_sequences=4, max_batch_tokens=8))
    short = run.add(2, 20)
    run.step()
    long = run.add(50, 1)
    for done in range(1, 4):
        tokens = len(short.output_ids)
        run.step()
        assert len(short.output_ids) == tokens + 1
        assert long.num_cached == 7 * done
    later = run.add(3, 4)
    run.step()
    assert later.num_cached == 0, "the budget is spent"
    run.finish_all()


def test_two_long_prompts_share_the_budget() -> None:
    scheduler = make_scheduler(num_blocks=100, block_size=4, max_sequences=4, max_batch_tokens=10)
    requests = [make_request(0, 8, 4), make_request(1, 30, 1), make_request(2, 30, 1)]
    for request in requests:
        scheduler.add(request)
    assert [(item.request, item.count) for item in scheduler.plan()] == [(requests[0], 8), (requests[1], 2)]


def test_a_step_always_has_room_for_a_token_of_every_row() -> None:
    assert make_scheduler(num_blocks=9, block_size=1, max_sequences=8, max_batch_tokens=2).max_batch_tokens == 8


@pytest.mark.parametrize(("prompt", "new", "fits"), [(1, 12, True), (12, 1, True), (12, 2, False), (1, 13, False)])
def test_rows_that_can_never_fit_are_rejected(prompt: int, new: int, fits: bool) -> None:
    """The last token that is chosen never enters the cache, so 12 positions hold 13 tokens."""
    run = Run(make_scheduler(num_blocks=4, block_size=4, max_sequences=2, max_batch_tokens=8))
    assert run.scheduler.capacity == 12
    if fits:
        run.add(prompt, new)
        run.finish_all()
    else:
        with pytest.raises(InputError, match=r"request 0 needs 13 positions of KV cache, there are 12.*max_new_tokens"):
            run.add(prompt, new)
        assert not run.scheduler.busy


def test_finishing_a_waiting_and_a_running_request() -> None:
    scheduler = make_scheduler(num_blocks=4, block_size=4, max_sequences=1, max_batch_tokens=8)
    running, waiting = make_request(0, 5, 3), make_request(1, 5, 3)
    scheduler.add(running)
    scheduler.add(waiting)
    scheduler.plan()
    for request in (waiting, running):
        scheduler.finish(request)
    assert not scheduler.busy and scheduler.pool.num_free == 3


def test_equal_requests_are_distinguished() -> None:
    scheduler = make_scheduler(num_blocks=9, block_size=4, max_sequences=4, max_batch_tokens=8)
    twins = [Request("same", [1], GENERATION, 1) for _ in range(2)]
    for twin in twins:
        scheduler.add(twin)
    scheduler.finish(twins[1])
    assert [waiting is twins[0] for waiting in scheduler.waiting] == [True]


class TestPrefixCache:
    """Blocks of 4, and prompts that begin alike."""

    def run(self, num_blocks: int = 100, max_batch_tokens: int = 64, **settings: object) -> Run:
        scheduler = make_scheduler(num_blocks, 4, 8, max_batch_tokens, prefix_cache=True)
        return Run(scheduler, generation=GenerationConfig(**settings))

    def test_a_common_prefix_is_computed_once(self) -> None:
        run = self.run()
        first = run.add([*range(8), 20, 21], 5)
        second = run.add([*range(8), 30], 5)
        run.step()
        assert list(run.scheduler.running) == [first], "the second waits for what the first computes"
        run.step()
        assert list(run.scheduler.running) == [first, second]
        assert second.block_table[:2] == first.block_table[:2] and second.block_table[2] != first.block_table[2]
        assert (first.num_reused, second.num_reused) == (0, 8)
        run.finish_all()
        assert run.computed == (10 + 4) + (9 + 4) - 8

    def test_a_request_without_a_common_beginning_does_not_wait(self) -> None:
        run = self.run()
        run.add([1] * 9, 2), run.add([2] * 9, 2)
        run.step()
        assert len(run.scheduler.running) == 2

    def test_no_row_waits_too_long_for_a_block_of_several_steps(self) -> None:
        run = self.run(max_batch_tokens=8)
        first, second = run.add([1] * 20 + [2], 1), run.add([1] * 20 + [3], 1)
        while not first.finished:
            assert not second.num_cached
            run.step()
        run.step()
        assert second.finished and second.num_reused == 20 and run.computed == 22

    def test_computed_blocks_survive_their_request(self) -> None:
        run = self.run()
        first = run.add(list(range(9)), 4)
        run.finish_all()
        # The next turn of a chat: the answer is part of the prompt.
        second = run.add([*first.prompt_ids, *first.output_ids, 50], 4)
        run.step()
        assert second.num_reused == 12
        run.finish_all()

    def test_a_fully_cached_prompt_computes_one_token(self) -> None:
        run = self.run()
        run.add(list(range(8)), 1)
        run.finish_all()
        pool, published = run.scheduler.pool, run.scheduler.pool.num_published
        second = run.add(list(range(8)), 3)
        (item,) = run.scheduler.plan()
        assert (item.count, item.copy, second.num_reused) == (1, None, 7)
        assert pool.num_published == published - 1, "a block that is written cannot be found"
        run.scheduler.advance(item)
        assert pool.num_published == published
        run.scheduler.finish(second)

    def test_a_block_that_others_hold_is_copied_before_it_is_written(self) -> None:
        run = self.run()
        first = run.add(list(range(8)), 9)
        run.step()
        second, third = run.add(list(range(8)), 9), run.add([*range(8), 9], 9)
        planned = run.scheduler.plan()
        assert [item.count for item in planned] == [1, 1, 1]
        assert planned[1].copy == (first.block_table[1], second.block_table[1])
        assert second.block_table[:1] == first.block_table[:1] and second.block_table[1] not in first.block_table
        assert planned[2].copy is None and third.block_table[:2] == first.block_table[:2]

    def test_other_content_with_the_same_tokens_is_not_shared(self) -> None:
        run = self.run()
        first, second, third = (run.add(list(range(9)), 4) for _ in range(3))
        second.cache_key = third.cache_key = b"adapter"
        run.step()
        assert list(run.scheduler.running) == [first, second]
        run.step()
        assert [row.num_reused for row in (first, second, third)] == [0, 0, 8]
        assert third.block_table[0] == second.block_table[0] != first.block_table[0]

    def test_a_request_without_a_past_shares_nothing(self) -> None:
        run = self.run(use_past=False)
        run.add(list(range(9)), 1), run.add(list(range(9)), 1)
        run.step()
        assert run.computed == 18 and run.scheduler.pool.num_published == 0

    def test_a_preempted_row_reuses_its_remaining_blocks(self) -> None:
        counts = {}
        for prefix_cache in (False, True):
            run = Run(make_scheduler(11, 4, 2, 64, prefix_cache))
            rows = [run.add([row] * 9, 24) for row in (1, 2)]
            run.finish_all()
            assert rows[1].times_put_back == 1 and rows[1].num_reused == 0
            counts[prefix_cache] = run.computed
        assert 2 * 32 < counts[True] < counts[False]

    def test_eviction_starts_with_the_least_recently_used_and_the_end_of_a_prompt(self) -> None:
        run = self.run(num_blocks=7)
        for token in (1, 2):
            run.add([token] * 12, 1)
            run.finish_all()
        # Three blocks each; the first of 1 is used again, which leaves its others as the oldest.
        run.add([1] * 4 + [9], 1)
        run.finish_all()
        run.add([3] * 12, 1)
        run.finish_all()
        held = {}
        for token in (1, 2, 3):
            row = run.add([token] * 12, 1)
            held[token] = len(run.scheduler.pool.find(run.scheduler._hashes(row, 3)))
            run.scheduler.finish(row)
        assert held == {1: 1, 2: 2, 3: 3}


def test_a_row_joins_when_it_can_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache for a few rows: letting them in where each can still grow saves much of what is computed twice."""
    wasted = {}
    for room in (0, scheduler_module.ROOM):
        monkeypatch.setattr(scheduler_module, "ROOM", room)
        chance = random.Random(0)
        run = Run(make_scheduler(num_blocks=100, block_size=4, max_sequences=16, max_batch_tokens=64))
        for _ in range(60):
            run.add([chance.randrange(1000) for _ in range(chance.randint(4, 60))], chance.randint(4, 100))
        run.finish_all()
        wasted[room] = run.computed - sum(row.most_cached for row in run.requests)
    assert 0 < wasted[scheduler_module.ROOM] < 0.75 * wasted[0]
