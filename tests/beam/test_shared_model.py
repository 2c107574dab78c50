"""Rows that fail take nobody with them."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest

pytest.importorskip("apache_beam", reason="needs Apache Beam: pip install 'mindspore-inference[beam]'")

from beam_helpers import breakable
from hypothesis import given
from hypothesis import strategies as st

from examples import examples
from inference.answering.shared_model import BAD_ROW, MODEL_FAILED, OUT_OF_MEMORY
from inference.errors import is_out_of_memory

ROWS = ["one", "two", [3, 4, 5], {"prompt": "four", "max_new_tokens": 2}]
BAD = ["", [999], {"prompt": "x", "max_new_tokenz": 3}, "far too long " * 9, 7, {"messages": [{"role": "user"}]}]


def test_a_bad_row_has_its_reason_and_the_others_keep_their_places():
    mixed = [row for pair in zip(BAD, ROWS * 2, strict=False) for row in pair]
    records = breakable().answer(mixed).records
    alone = breakable().answer(ROWS).records
    assert [record["finish_reason"] == "error" for record in records] == [True, False] * len(BAD)
    assert {record["error"]["type"] for record in records[::2]} == {BAD_ROW}
    assert "outside the vocabulary" in records[2]["error"]["message"]
    assert "did you mean 'max_new_tokens'" in records[4]["error"]["message"]
    assert "the model's context is 64" in records[6]["error"]["message"]
    assert [record["text"] for record in records[1:8:2]] == [record["text"] for record in alone]
    assert records[7]["completion_tokens"] == 2


@examples(25)
@given(
    st.lists(st.sampled_from(["", "ab", "c", "!bad", "longer text", "x!"]), max_size=12),
    st.integers(1, 5),
)
def test_failures_and_little_memory_do_not_change_answers(rows, most_rows):
    together = breakable(poison="!", most_rows=most_rows).answer(rows).records
    whole = breakable()
    for row, record in zip(rows, together, strict=True):
        if "!" in row or not row:
            assert record["error"]["type"] == (MODEL_FAILED if row else BAD_ROW)
        else:
            assert record["text"] == whole.answer([row]).records[0]["text"]


def test_a_batch_too_large_for_memory_is_halved_until_it_fits():
    answers = breakable(most_rows=1).answer(["a", "b", "c", "d"])
    # A row may be done before its neighbor has come to the engine.
    assert all(record["error"] is None for record in answers.records) and 1 <= answers.halved <= 3
    assert breakable(most_rows=4).answer(["a", "b", "c", "d"]).halved == 0
    records = breakable(most_rows=0).answer(["a", "b"]).records
    assert [record["error"]["type"] for record in records] == [OUT_OF_MEMORY] * 2


def test_a_row_of_another_thread_is_not_blamed_for_breaking_the_engine():
    model, found = breakable(poison="!"), {}

    def ask(name: str, rows: list[str]) -> None:
        found[name] = [model.answer(rows).records for _ in range(10)]

    threads = [
        threading.Thread(target=ask, args=("bad", ["a!", "b"])),
        threading.Thread(target=ask, args=("good", ["c"])),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [[r["error"] is None for r in records] for records in found["bad"]] == [[False, True]] * 10
    assert [[r["error"] is None for r in records] for records in found["good"]] == [[True]] * 10


def test_out_of_memory_errors():
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("Allocate memory failed, size 3"))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))


def test_an_unused_model_is_released():
    model = breakable()
    model.answer(["a"])
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
