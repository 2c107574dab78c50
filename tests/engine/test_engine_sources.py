"""The engine on a toy model with an encoder: sources, answers, preemption and block accounting in one pool."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import ToyModel, logits_of

from examples import examples
from inference.config import GenerationConfig
from inference.engine.engine import Engine
from inference.engine.metrics import RunMetrics
from inference.engine.request import FinishReason, Request
from inference.engine.sampler import choose
from inference.errors import InputError
from inference.models.step import StepBatch

VOCABULARY, START, CONTEXT = 40, 0, 32
KINDS = (
    {"max_new_tokens": 6},
    {"max_new_tokens": 20, "eos_token_id": [3, 7, 11]},
    {"max_new_tokens": 9, "do_sample": True, "temperature": 1.5, "seed": 1},
    {"max_new_tokens": 8, "use_past": False},
    {"max_new_tokens": 1},
)
ROWS = st.lists(
    st.tuples(st.lists(st.integers(0, 39), min_size=1, max_size=CONTEXT), st.sampled_from(KINDS)), max_size=8
)


class ToySources(ToyModel):
    """Logits depend on the source and the answer so far, both read from the cache through their tables."""

    encoded = 0

    def encode(self, batch: StepBatch) -> None:
        assert (batch.positions[batch.query_starts[:-1]] == 0).all()
        self.tokens[batch.slots], self.positions[batch.slots] = batch.tokens, batch.positions
        self.encoded += len(batch.block_tables)

    def _logits(self, batch: StepBatch, token: int) -> np.ndarray:
        row, at = self._rows(batch)[token], int(batch.positions[token])
        assert batch.cross_tables is not None and batch.cross_lengths is not None
        source = self._read(batch.cross_tables[row], int(batch.cross_lengths[row]))
        return logits_of([*source, -1, *self._read(batch.block_tables[row], at + 1)], self.vocabulary)

    def _read(self, table: np.ndarray, length: int) -> list[int]:
        places = np.arange(length)
        slots = table[places // self.block_size] * self.block_size + places % self.block_size
        assert (self.positions[slots] == places).all(), "the cache holds another position here"
        return self.tokens[slots].tolist()


def requests_of(rows: Sequence[tuple[list[int], dict]]) -> list[Request]:
    made = []
    for index, (source, kind) in enumerate(rows):
        generation = GenerationConfig(**kind)
        limit = generation.new_token_limit(1, CONTEXT)
        seed = generation.seed or 0
        made.append(Request(str(index), [START], generation, limit, seed=seed, source_ids=list(source)))
    return made


def naive_answer(request: Request) -> tuple[list[int], FinishReason]:
    """The answer without any cache, batch or engine."""
    assert request.source_ids is not None
    while True:
        logits = logits_of([*request.source_ids, -1, START, *request.output_ids], VOCABULARY)
        request.append(choose(logits, request))
        if request.output_ids[-1] in request.generation.eos_token_id:
            return request.output_ids, FinishReason.STOP
        if len(request.output_ids) == request.max_new_tokens:
            return request.output_ids, FinishReason.LENGTH


def run(engine: Engine, requests: Sequence[Request]) -> None:
    for request in requests:
        engine.add(request)
    for _ in engine.run():
        pass


@given(
    ROWS,
    st.sampled_from([(64, 4), (14, 4), (53, 1), (8, 8), (3, 64)]),
    st.integers(1, 8),
    st.integers(1, 40),
    st.randoms(use_true_random=False),
)
@examples(100)
def test_a_rows_tokens_do_not_depend_on_other_rows(
    rows: list[tuple[list[int], dict]],
    cache: tuple[int, int],
    max_sequences: int,
    max_batch_tokens: int,
    chance: random.Random,
) -> None:
    """Any batch, order and step size, and a cache down to one that holds a single row of the longest kind."""
    expected = [naive_answer(request) for request in requests_of(rows)]
    model = ToySources(VOCABULARY, num_blocks=cache[0], block_size=cache[1], context_length=CONTEXT)
    requests = requests_of(rows)
    limits = {"max_sequences": max_sequences, "max_batch_tokens": max_batch_tokens}
    run(Engine(model, **limits), chance.sample(requests, len(requests)))
    assert [(request.output_ids, request.finish_reason) for request in requests] == expected
    assert model.blocks.num_free == model.blocks.capacity
    assert model.encoded == len(rows) + sum(request.times_put_back for request in requests)


def test_a_preempted_row_is_encoded_again() -> None:
    rows = [([index] * 8, {"max_new_tokens": 24}) for index in range(3)]
    requests, metrics = requests_of(rows), RunMetrics()
    model = ToySources(VOCABULARY, num_blocks=16, block_size=4, context_length=CONTEXT)
    run(Engine(model, metrics=metrics), requests)
    assert metrics.preemptions > 0 and model.encoded == 3 + metrics.preemptions
    assert metrics.prompt_tokens == 24
    assert [request.output_ids for request in requests] == [naive_answer(r)[0] for r in requests_of(rows)]


def test_a_steps_sources_are_within_its_tokens_or_there_is_one() -> None:
    rows = [([1] * length, {"max_new_tokens": 2}) for length in (5, 5, 30, 5, 5)]
    model = ToySources(VOCABULARY, context_length=CONTEXT)
    engine = Engine(model, max_batch_tokens=13, max_sequences=5)
    for request in requests_of(rows):
        engine.add(request)
    encoded = []
    while engine.busy:
        before = model.encoded
        engine.step()
        encoded.append(model.encoded - before)
    assert [count for count in encoded if count] == [2, 1, 2]


def test_input_that_does_not_fit_is_rejected() -> None:
    model = ToySources(VOCABULARY, num_blocks=9, block_size=4, context_length=CONTEXT)
    for source, new, message in (
        ([1] * 33, 4, "33 tokens does not fit a context of 32"),
        ([1] * 32, 4, "needs 36 positions of KV cache"),
        ([], 4, "no tokens"),
    ):
        with pytest.raises(InputError, match=message):
            Engine(model).add(requests_of([(source, {"max_new_tokens": new})])[0])
