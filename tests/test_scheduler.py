"""The scheduler alone: whose blocks are whose, what goes into a step, and that everything finishes."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.config import GenerationConfig
from inference.errors import InputError
from inference.request import FinishReason, Request
from inference.scheduler import NULL_BLOCK, BlockPool, Scheduled, Scheduler

GENERATION = GenerationConfig()


def make_request(name: int, prompt: int, new: int) -> Request:
    return Request(str(name), [1] * prompt, GENERATION, new)


def check_blocks(scheduler: Scheduler, requests: list[Request]) -> None:
    """No block is lost, shared, or the null block; a request that does not run holds none."""
    held = [block for request in requests for block in request.block_table]
    assert len(held) == len(set(held)), "a block is in two tables"
    assert len(held) + scheduler.pool.num_free == scheduler.pool.capacity, "blocks are lost"
    assert all(NULL_BLOCK < block <= scheduler.pool.capacity for block in held)
    for request in requests:
        assert not request.block_table or request in scheduler.running
        assert request.finished or request.num_cached <= len(request.block_table) * scheduler.pool.block_size


def check_plan(scheduler: Scheduler, planned: list[Scheduled]) -> None:
    """The step's limits hold, and every table holds what the step will write."""
    assert planned, "there is work, and the plan is empty"
    assert len({item.request for item in planned}) == len(planned) <= scheduler.max_sequences
    assert sum(item.count for item in planned) <= scheduler.max_batch_tokens
    assert [item.request for item in planned] == scheduler.running
    for item in planned:
        assert 1 <= item.count <= item.request.num_uncached
        room = len(item.request.block_table) * scheduler.pool.block_size
        assert room >= item.request.num_cached + item.count
        assert item.reaches_end == (item.count == item.request.num_uncached)


@dataclass
class Run:
    """What an engine does with a scheduler, without a model: every row that reaches its end gets a token."""

    scheduler: Scheduler
    requests: list[Request] = field(default_factory=list)
    use_past: bool = True
    put_back: int = 0

    def add(self, prompt: int, new: int) -> Request:
        request = make_request(len(self.requests), prompt, new)
        self.scheduler.add(request)
        self.requests.append(request)
        return request

    def step(self) -> None:
        cached = {request: request.num_cached for request in self.scheduler.running}
        planned = self.scheduler.plan()
        self.put_back += len(cached.keys() - set(self.scheduler.running))
        for item in planned:
            assert item.request.num_cached == cached.get(item.request, 0), "put back and begun again in one step"
        check_plan(self.scheduler, planned)
        check_blocks(self.scheduler, self.requests)
        for item in planned:
            request, at_end = item.request, item.reaches_end
            request.num_cached += item.count
            if at_end:
                request.append(1)
                if not self.use_past:
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
    }
)
REQUESTS = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 12)), min_size=1, max_size=12)


@given(SIZES, REQUESTS, st.booleans(), st.data())
@settings(max_examples=300)
def test_every_request_finishes_and_no_block_is_lost(
    sizes: dict, lengths: list[tuple[int, int]], use_past: bool, data: st.DataObject
) -> None:
    """Requests arrive at any time and some are let go of; what can never fit is refused."""
    run = Run(Scheduler(**sizes), use_past=use_past)
    for prompt, new in lengths:
        if prompt + new - 1 > run.scheduler.capacity:
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
    run = Run(Scheduler(num_blocks=7, block_size=2, max_sequences=4, max_batch_tokens=16))
    for _ in range(4):
        run.add(3, 9)
    run.finish_all()
    assert run.put_back >= 3


def test_the_youngest_row_is_put_back_and_comes_next() -> None:
    run = Run(Scheduler(num_blocks=7, block_size=2, max_sequences=3, max_batch_tokens=16))
    first, second, third = run.add(4, 9), run.add(4, 3), run.add(4, 3)
    behind = run.add(1, 1)
    run.step()
    assert run.scheduler.running == [first, second, third]
    assert list(run.scheduler.waiting) == [behind]
    run.step()  # Each needs a third block, and there is none: the youngest gives its two.
    assert run.scheduler.running == [first, second]
    assert list(run.scheduler.waiting) == [third, behind]
    assert (third.num_cached, third.block_table, len(third.output_ids)) == (0, [], 1)
    run.finish_all()


def test_a_row_that_puts_itself_back_lets_no_other_in() -> None:
    run = Run(Scheduler(num_blocks=5, block_size=2, max_sequences=3, max_batch_tokens=16))
    old, young = run.add(4, 5), run.add(4, 3)
    run.step()
    small = run.add(1, 1)
    run.step()
    assert run.scheduler.running == [old]
    assert list(run.scheduler.waiting) == [young, small]
    run.finish_all()


def test_requests_start_in_the_order_of_their_arrival() -> None:
    run = Run(Scheduler(num_blocks=4, block_size=4, max_sequences=8, max_batch_tokens=64))
    big, small = run.add(12, 1), run.add(1, 1)
    waiting = run.add(12, 1)
    run.step()
    assert big.finished and not small.finished
    run.step()
    assert small.finished and not waiting.finished
    run.finish_all()


def test_a_long_prompt_goes_in_chunks_and_stalls_nobody() -> None:
    run = Run(Scheduler(num_blocks=100, block_size=4, max_sequences=4, max_batch_tokens=8))
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
    scheduler = Scheduler(num_blocks=100, block_size=4, max_sequences=4, max_batch_tokens=10)
    requests = [make_request(0, 8, 4), make_request(1, 30, 1), make_request(2, 30, 1)]
    for request in requests:
        scheduler.add(request)
    assert [(item.request, item.count) for item in scheduler.plan()] == [(requests[0], 8), (requests[1], 2)]


def test_a_step_always_has_room_for_a_token_of_every_row() -> None:
    assert Scheduler(num_blocks=9, block_size=1, max_sequences=8, max_batch_tokens=2).max_batch_tokens == 8


@pytest.mark.parametrize(("prompt", "new", "fits"), [(1, 12, True), (12, 1, True), (12, 2, False), (1, 13, False)])
def test_what_can_never_fit_is_refused(prompt: int, new: int, fits: bool) -> None:
    """The last token that is chosen never enters the cache, so 12 positions hold 13 tokens."""
    run = Run(Scheduler(num_blocks=4, block_size=4, max_sequences=2, max_batch_tokens=8))
    assert run.scheduler.capacity == 12
    if fits:
        run.add(prompt, new)
        run.finish_all()
    else:
        with pytest.raises(InputError, match=r"request 0 needs 13 positions of KV cache, there are 12.*max_new_tokens"):
            run.add(prompt, new)
        assert not run.scheduler.busy


def test_finishing_a_waiting_and_a_running_request() -> None:
    scheduler = Scheduler(num_blocks=4, block_size=4, max_sequences=1, max_batch_tokens=8)
    running, waiting = make_request(0, 5, 3), make_request(1, 5, 3)
    scheduler.add(running)
    scheduler.add(waiting)
    scheduler.plan()
    for request in (waiting, running):
        scheduler.finish(request)
    assert not scheduler.busy and scheduler.pool.num_free == 3


def test_equal_requests_are_told_apart() -> None:
    scheduler = Scheduler(num_blocks=9, block_size=4, max_sequences=4, max_batch_tokens=8)
    twins = [Request("same", [1], GENERATION, 1) for _ in range(2)]
    for twin in twins:
        scheduler.add(twin)
    scheduler.finish(twins[1])
    assert list(scheduler.waiting) == [twins[0]] and scheduler.waiting[0] is twins[0]


@given(st.integers(2, 20), st.integers(1, 8), st.lists(st.integers(0, 40), max_size=12))
def test_block_pool_grows_all_or_nothing(num_blocks: int, block_size: int, sizes: list[int]) -> None:
    pool = BlockPool(num_blocks, block_size)
    tables: list[list[int]] = []
    for size in sizes:
        table: list[int] = []
        free, needed = pool.num_free, -(-size // block_size)
        assert pool.grow(table, size) == (needed <= free)
        assert len(table) == (needed if needed <= free else 0)
        assert pool.num_free == free - len(table)
        tables.append(table)
    for table in tables:
        pool.release(table)
    assert pool.num_free == pool.capacity == num_blocks - 1
    assert pool.grow(everything := [], pool.capacity * block_size)
    assert sorted(everything) == list(range(1, num_blocks))


def test_a_cache_of_the_null_block_alone_is_no_cache() -> None:
    with pytest.raises(ValueError, match="null block"):
        BlockPool(1, 16)


def test_planning_a_large_load() -> None:
    """1000 rows that decode, 10000 that wait: prints the time, judges the result."""
    scheduler = Scheduler(num_blocks=40_000, block_size=16, max_sequences=1000, max_batch_tokens=1_000_000)
    generator = random.Random(0)
    requests = [make_request(i, generator.randint(1, 400), 100) for i in range(11_000)]
    for request in requests:
        scheduler.add(request)
    for item in scheduler.plan():
        item.request.num_cached += item.count
        item.request.append(1)
    started = time.perf_counter()
    planned = scheduler.plan()
    print(f"plan of {len(planned)} rows: {1000 * (time.perf_counter() - started):.1f} ms")
    assert [item.count for item in planned] == [1] * 1000
    check_plan(scheduler, planned)
    check_blocks(scheduler, requests)
