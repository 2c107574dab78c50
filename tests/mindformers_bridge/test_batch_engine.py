"""MindFormers' loop behind the engine's interface, with a toy in the place of MindFormers: no mindformers is needed."""

from __future__ import annotations

import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import ToyModel, logits_of, make_request

from examples import examples
from inference.engine.engine import Engine
from inference.engine.request import FinishReason
from inference.errors import InferenceError, InputError
from inference.mindformers_bridge.backend import MindFormersEngine

VOCABULARY, CONTEXT, BLOCK = 40, 64, 4


class ToyNetwork:
    """Keeps MindFormers' contract of `generate`: lengths are told from padding, rows run until the last has ended."""

    def __init__(self, num_blocks: int = 64, fail_after: int | None = None):
        self.config = SimpleNamespace(block_size=BLOCK, num_blocks=num_blocks, seq_length=CONTEXT)
        self.block_mgr = SimpleNamespace(clear_cache=self._clear)
        self.calls: list[int] = []
        self.steps = self.cleared = 0
        self.fail_after = fail_after

    def _clear(self) -> None:
        self.cleared += 1

    def generate(self, input_ids, streamer, max_new_tokens, eos_token_id, pad_token_id, logits_processor, **settings):
        assert settings["do_sample"] is False
        rows = np.array(input_ids)
        self.calls.append(len(rows))
        past = [row[: np.max(np.argwhere(row != pad_token_id)) + 1].tolist() for row in rows]
        ended = [False] * len(rows)
        streamer.put(rows)
        for _ in range(max_new_tokens):
            self.steps += 1
            if self.steps == self.fail_after:
                raise RuntimeError("block pool is out of memory")
            logits = np.stack([logits_of(row, VOCABULARY) for row in past])
            if logits_processor:
                import mindspore

                logits = logits_processor[0](None, mindspore.Tensor(logits)).asnumpy()
            tokens = logits.argmax(axis=1).tolist()
            for index, token in enumerate(tokens):
                if not ended[index]:
                    past[index].append(token)
                    ended[index] = token in eos_token_id
            streamer.put(tokens[0] if len(rows) == 1 else tokens)
            if all(ended):
                break
        streamer.end()


def answers(engine, rows) -> dict[str, tuple]:
    for request in rows:
        engine.add(request)
    done = list(engine.run())
    assert len(done) == len(rows)
    return {row.request_id: (row.output_ids, row.finish_reason, tuple(row.logprobs)) for row in done}


row = st.tuples(
    st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=8),
    st.fixed_dictionaries(
        {"max_new_tokens": st.integers(1, 12), "seed": st.integers(0, 9)},
        optional={
            "do_sample": st.booleans(),
            "eos_token_id": st.lists(st.integers(0, VOCABULARY - 1), max_size=12),
            "ignore_eos": st.booleans(),
            "min_new_tokens": st.just(1),
            "repetition_penalty": st.sampled_from([1.0, 1.5]),
            "presence_penalty": st.sampled_from([0.0, 1.0]),
            "logprobs": st.integers(0, 2),
        },
    ),
)


@examples(40)
@given(rows=st.lists(row, min_size=1, max_size=7), at_once=st.integers(1, 4))
def test_every_row_gets_the_answer_of_the_continuous_engine(rows, at_once) -> None:
    def requests():
        return [make_request(ids, str(index), CONTEXT, **given) for index, (ids, given) in enumerate(rows)]

    network = ToyNetwork()
    batches = MindFormersEngine(network, CONTEXT, at_once)
    assert answers(batches, requests()) == answers(Engine(ToyModel(VOCABULARY, context_length=CONTEXT)), requests())
    assert max(network.calls) <= at_once
    assert not batches.busy and batches.kv_use == 0
    metrics = batches.metrics
    assert metrics.requests == len(rows) and metrics.completion_tokens >= len(rows)
    assert network.cleared == len(network.calls), "blocks of a batch are not given back"


def test_a_batch_ends_with_its_last_row_and_not_later() -> None:
    network = ToyNetwork()
    engine = MindFormersEngine(network, CONTEXT, 2)
    rows = [make_request([1, 2], str(limit), CONTEXT, max_new_tokens=limit) for limit in (3, 5, 2)]
    assert [request.request_id for request in _finished(engine, rows)] == ["3", "5", "2"]
    assert (network.calls, network.steps) == ([2, 1], 5 + 2)


def test_the_cache_size_limits_the_rows_of_a_batch() -> None:
    network = ToyNetwork(num_blocks=8)
    engine = MindFormersEngine(network, CONTEXT, 4)
    with pytest.raises(InputError, match="needs? 9 blocks of KV cache, model.model_config.num_blocks is 8"):
        engine.add(make_request([1], "long", CONTEXT, max_new_tokens=35))
    # Each takes two blocks, and as many as the longest of its batch: 2 * 4 fit, 3 * 4 do not.
    rows = [make_request([1], str(index), CONTEXT, max_new_tokens=limit) for index, limit in enumerate((7, 13, 7))]
    _finished(engine, rows)
    assert network.calls == [2, 1]


def test_rows_can_be_cancelled_at_any_time() -> None:
    network = ToyNetwork()
    engine = MindFormersEngine(network, CONTEXT, 2)
    rows = [make_request([3, index], str(index), CONTEXT, max_new_tokens=20) for index in range(3)]
    for request in rows:
        engine.add(request)
    engine.step()
    engine.finish(rows[2], FinishReason.CANCELLED)
    engine.finish(rows[0], FinishReason.STOP)
    assert [request.request_id for request in engine.step()] == ["1"]
    engine.close()
    assert [request.finish_reason for request in rows] == [
        FinishReason.STOP,
        FinishReason.CANCELLED,
        FinishReason.CANCELLED,
    ]
    assert network.steps == 2 and not engine.busy
    assert not [thread for thread in threading.enumerate() if thread.name == "mindformers"]


def test_a_mindformers_failure_is_one_line_and_the_engine_continues() -> None:
    network = ToyNetwork(fail_after=2)
    engine = MindFormersEngine(network, CONTEXT, 2)
    first = make_request([1], "first", CONTEXT, max_new_tokens=5)
    engine.add(first)
    engine.step()
    with pytest.raises(InferenceError, match="MindFormers cannot generate: RuntimeError: block pool is out of memory"):
        engine.step()
    assert network.cleared == 1
    engine.close()
    assert len(_finished(engine, [make_request([1], "next", CONTEXT, max_new_tokens=5)])) == 1


def test_none_of_this_imported_mindformers() -> None:
    assert "mindformers" not in sys.modules


def _finished(engine, rows):
    for request in rows:
        engine.add(request)
    return list(engine.run())
