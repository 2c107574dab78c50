"""The engine that all callers share: rows run together, are let go of, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_engine import KINDS, PROMPTS, VOCABULARY, naive_answer, requests_of
from toys import ToyModel, make_request

from examples import examples
from inference.engine.background import BackgroundEngine, Delivery
from inference.engine.engine import Engine
from inference.engine.request import FinishReason, Request
from inference.errors import GenerationError, InferenceError, InputError

ROOT = Path(__file__).parents[2]
# The most that a test waits for what is sure to come, seconds.
PATIENCE = 60


@dataclass(eq=False)
class Tokens:
    """A row whose events are its tokens."""

    request: Request
    fails_at: int | None = None

    def advance(self, engine: Engine) -> int:
        if len(self.request.output_ids) == self.fails_at:
            raise ValueError("this row is broken")
        return self.request.output_ids[-1]


class Slow(ToyModel):
    """Takes a moment for each step, so that a test can do things meanwhile; stands still while `going` is not set."""

    def __init__(self, *arguments: int, **sizes: int):
        super().__init__(*arguments, **sizes)
        self.going = threading.Event()
        self.going.set()

    def step(self, batch):
        assert self.going.wait(PATIENCE)
        time.sleep(0.002)
        return super().step(batch)


def endless() -> tuple[Slow, Request]:
    """A model, and a row that takes it a quarter of a minute: longer than a test is kept waiting on a busy machine."""
    model = Slow(VOCABULARY, context_length=10_000, num_blocks=5_000)
    return model, make_request([1], context=10_000, max_new_tokens=7_000)


class Background(BackgroundEngine):
    """On a toy; counts how often an engine was opened."""

    def __init__(self, model: ToyModel, **limits: int):
        self.model, self.opened, self._only = model, 0, threading.Lock()

        @contextmanager
        def open_engine() -> Iterator[Engine]:
            with self._only:
                self.opened += 1
                engine = Engine(model, **limits)
                try:
                    yield engine
                finally:
                    engine.close()

        super().__init__(open_engine)

    def idle(self) -> bool:
        """Whether the thread ends soon, and all blocks are free then."""
        deadline = time.monotonic() + PATIENCE
        while self._thread is not None and time.monotonic() < deadline:
            time.sleep(0.001)
        with self._only:
            return (
                self._thread is None and not self._entries and self.model.blocks.num_free == self.model.blocks.capacity
            )


def tokens_of(background: BackgroundEngine, requests: list[Request], most: int) -> dict[Request, list[int]]:
    found: dict[Request, list[int]] = {request: [] for request in requests}
    for delivery in background.stream(map(Tokens, requests), most):
        found[delivery.request].append(delivery.unwrap())
        assert delivery.last == (len(found[delivery.request]) == len(delivery.request.output_ids)) or not delivery.last
    return found


@given(st.lists(st.tuples(PROMPTS, st.sampled_from(KINDS)), max_size=9), st.integers(1, 5), st.integers(1, 9))
@examples(40)
def test_every_token_arrives_once_and_in_order(rows: list[tuple[list[int], dict]], sequences: int, most: int) -> None:
    background = Background(ToyModel(VOCABULARY), max_sequences=sequences)
    requests = requests_of(rows)
    found = tokens_of(background, requests, most)
    assert list(found.values()) == [naive_answer(request)[0] for request in requests_of(rows)]
    assert background.idle()


def test_rows_of_many_threads_run_together() -> None:
    background = Background(Slow(VOCABULARY), max_sequences=8)
    rows = [([i] * 5, {"max_new_tokens": 20}) for i in range(8)]
    requests, found = requests_of(rows), {}
    background.model.going.clear()

    def caller(request: Request) -> None:
        found.update(tokens_of(background, [request], 1))

    threads = [threading.Thread(target=caller, args=(request,)) for request in requests]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + PATIENCE
    while len(background._entries) < 8:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    background.model.going.set()
    for thread in threads:
        thread.join()
    assert [found[request] for request in requests] == [naive_answer(r)[0] for r in requests_of(rows)]
    assert max(len(batch.block_tables) for batch in background.model.batches) == 8
    assert background.opened == 1 and background.idle()


def test_rows_are_read_as_others_finish() -> None:
    background = Background(ToyModel(VOCABULARY), max_sequences=2)
    read = []

    def rows() -> Iterator[Tokens]:
        for number in itertools.count():
            read.append(number)
            yield Tokens(make_request([number % 40], max_new_tokens=3))

    stream = background.stream(rows(), 4, every_token=False)
    for taken in range(1, 30):
        delivery = next(stream)
        assert delivery.last and len(delivery.request.output_ids) == 3
        assert len(read) <= taken + 3
    stream.close()
    assert background.idle()


def test_closing_the_iterator_cancels_only_its_rows() -> None:
    model, gone = endless()
    background, stays = Background(model), make_request([2], max_new_tokens=40)
    first = background.stream([Tokens(gone)], 1)
    next(first)
    second = background.stream([Tokens(stays)], 1)
    next(second)
    first.close()
    assert len(list(second)) == 39
    assert background.idle() and len(gone.output_ids) < gone.max_new_tokens


def test_an_error_of_a_row_is_its_own() -> None:
    background = Background(ToyModel(VOCABULARY, num_blocks=6))
    too_long = make_request([1] * 30, max_new_tokens=10)
    good, broken = make_request([3], max_new_tokens=9), make_request([4], max_new_tokens=9)
    last_broken = make_request([5], max_new_tokens=4)
    rows = [Tokens(good), Tokens(too_long), Tokens(broken, fails_at=4), Tokens(last_broken, fails_at=4)]
    last = {d.request: d for d in background.stream(rows, 4) if d.last}
    assert last[good].error is None and len(good.output_ids) == 9
    with pytest.raises(InputError, match="needs 39 positions of KV cache, there are 20"):
        last[too_long].unwrap()
    for request in (broken, last_broken):
        with pytest.raises(GenerationError, match="request 0: ValueError: this row is broken"):
            last[request].unwrap()
        assert request.finish_reason is FinishReason.ERROR
    assert len(last) == 4 and background.idle()


def test_nan_logits_are_an_error_of_their_row() -> None:
    background = Background(ToyModel(VOCABULARY, poison=7))
    good, bad = make_request([3], max_new_tokens=9), make_request([7], max_new_tokens=9)
    last = {d.request: d for d in background.stream([Tokens(good), Tokens(bad)], 2) if d.last}
    assert good.output_ids == naive_answer(make_request([3], max_new_tokens=9))[0] and last[good].error is None
    assert "not numbers" in str(last[bad].error) and last[bad].event is None
    assert background.idle()


def test_a_model_error_reaches_all_callers_and_the_next_run_succeeds(monkeypatch) -> None:
    background = Background(ToyModel(VOCABULARY))
    step = background.model.step

    def fail(batch):
        if len(background.model.batches) == 8:
            raise InferenceError("a rank is gone")
        return step(batch)

    monkeypatch.setattr(background.model, "step", fail)
    rows = [Tokens(make_request([i], max_new_tokens=20)) for i in range(3)]
    errors = [d.error for d in background.stream(rows, 3) if d.last]
    assert len(errors) == 3 and all("a rank is gone" in str(error) for error in errors)
    assert background.idle()
    monkeypatch.undo()
    again = make_request([1], max_new_tokens=5)
    assert tokens_of(background, [again], 1) == {again: again.output_ids} and len(again.output_ids) == 5


def test_an_error_of_the_input_ends_the_stream() -> None:
    background = Background(Slow(VOCABULARY))

    def rows() -> Iterator[Tokens]:
        yield Tokens(make_request([1], max_new_tokens=50))
        raise InputError("the file ends here")

    with pytest.raises(InputError, match="the file ends here"):
        list(background.stream(rows(), 5))
    assert background.idle()


def test_closing_the_engine_wakes_waiting_callers() -> None:
    model, request = endless()
    background = Background(model)
    stream = background.stream([Tokens(request)], 1)
    next(stream)
    background.close()
    deliveries = list(stream)
    assert deliveries[-1].last
    with pytest.raises(InferenceError, match="the engine was closed"):
        deliveries[-1].unwrap()
    assert background._thread is None and background.idle()
    again = make_request([1], max_new_tokens=2)
    assert len(tokens_of(background, [again], 1)[again]) == 2


def test_a_lost_consumer_does_not_affect_others() -> None:
    """As when its event loop is closed."""
    background = Background(Slow(VOCABULARY))
    lost, stays = make_request([1], max_new_tokens=60), make_request([2], max_new_tokens=9)

    def deliver(delivery: Delivery) -> None:
        raise RuntimeError("Event loop is closed")

    background.submit(Tokens(lost), deliver)
    assert len(tokens_of(background, [stays], 1)[stays]) == 9
    assert background.idle() and len(lost.output_ids) < 60


class TestEventLoop:
    def test_many_rows_at_once(self) -> None:
        background = Background(Slow(VOCABULARY), max_sequences=16)
        rows = [([i] * 3, {"max_new_tokens": 12}) for i in range(12)]

        async def collect(request: Request) -> list[int]:
            return [token async for token in background.stream_async(Tokens(request))]

        async def everything() -> list[list[int]]:
            background.model.going.clear()
            tasks = [asyncio.create_task(collect(request)) for request in requests_of(rows)]
            # Each has handed in its row when the loop comes back here.
            await asyncio.sleep(0)
            background.model.going.set()
            return await asyncio.gather(*tasks)

        assert asyncio.run(everything()) == [naive_answer(r)[0] for r in requests_of(rows)]
        assert max(len(batch.block_tables) for batch in background.model.batches) == 12
        assert background.idle()

    def test_a_cancelled_task_frees_its_row(self) -> None:
        model, request = endless()
        background = Background(model)

        async def collect() -> None:
            async for _ in background.stream_async(Tokens(request)):
                pass

        async def cancel() -> None:
            task = asyncio.create_task(collect())
            while len(request.output_ids) < 3:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(cancel())
        assert background.idle() and 3 <= len(request.output_ids) < request.max_new_tokens

    def test_an_error_is_raised_when_the_row_is_awaited(self) -> None:
        background = Background(ToyModel(VOCABULARY, num_blocks=6))

        async def collect() -> list[int]:
            return [token async for token in background.stream_async(Tokens(make_request([1] * 30)))]

        with pytest.raises(InputError, match="KV cache"):
            asyncio.run(collect())


def test_a_process_ends_while_rows_run() -> None:
    """The main thread leaves an answer half way; the process ends at once and without a word."""
    program = """
import sys
sys.path[:0] = ['tests/helpers', 'tests/engine']
from test_background import Background, Slow, Tokens, VOCABULARY
from toys import make_request
background = Background(Slow(VOCABULARY, context_length=100_000, num_blocks=30_000))
stream = background.stream([Tokens(make_request([1], context=100_000, max_new_tokens=90_000))], 1)
next(stream)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
