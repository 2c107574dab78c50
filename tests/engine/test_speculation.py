"""Speculation changes no token: rows of every kind, in any batch, with right guesses and wrong ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import ByteTokenizer, ScriptModel, ToyModel, make_request

from inference.engine.engine import Engine
from inference.engine.request import Request
from inference.engine.speculation import LONGEST, Lookup, StepCost
from inference.generation.text import EncodedPrompt, TextEvent, TextGenerator
from inference.inputs.prompts import Prompt
from inference.models.step import StepBatch, StepResult

VOCABULARY = 40


class CopyingModel(ToyModel):
    """Mostly repeats what came eight tokens before, so that guesses are right, and now and then says something else."""

    def _logits(self, batch: StepBatch, token: int) -> np.ndarray:
        logits = super()._logits(batch, token)
        position, row = int(batch.positions[token]), int(self._rows(batch)[token])
        before = position - 7
        if before >= 0 and position % 11:
            slot = batch.block_tables[row, before // self.block_size] * self.block_size + before % self.block_size
            logits[self.tokens[slot]] += 12
        return logits


KINDS: tuple[dict[str, Any], ...] = (
    {"max_new_tokens": 40},
    {"max_new_tokens": 30, "eos_token_id": [3, 7]},
    {"max_new_tokens": 30, "do_sample": True, "temperature": 1.2, "seed": 1},
    {"max_new_tokens": 30, "do_sample": True, "top_p": 0.8, "seed": 2, "repetition_penalty": 1.2},
    {"max_new_tokens": 30, "frequency_penalty": 0.4, "presence_penalty": 0.3, "logprobs": 2},
    {"max_new_tokens": 30, "no_repeat_ngram_size": 5},
    {"max_new_tokens": 30, "eos_token_id": list(range(0, 40, 2)), "min_new_tokens": 12},
    {"max_new_tokens": 20, "forced_eos_token_id": 9, "eos_token_id": 9},
    {"max_new_tokens": 10, "use_past": False},
)
ROWS = st.lists(
    st.tuples(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.sampled_from(KINDS)), min_size=1, max_size=6
)


class FreeTokens(StepCost):
    """Steps whose time does not count: what is guessed must not depend on how busy the machine is."""

    def note(self, tokens: int, seconds: float) -> None:
        pass


def run(rows: Sequence[tuple[list[int], dict[str, Any]]], lookup: bool, **limits: int) -> tuple[Engine, list[Request]]:
    model = CopyingModel(VOCABULARY, num_blocks=limits.pop("num_blocks", 64))
    engine = Engine(model, lookup=lookup, **limits)
    engine.speculation.cost = FreeTokens()
    requests = [make_request(prompt, str(i), **settings) for i, (prompt, settings) in enumerate(rows)]
    for request in requests:
        request.row = int(request.request_id)
        engine.add(request)
    list(engine.run())
    assert model.blocks.num_free == model.blocks.capacity
    return engine, requests


@given(ROWS, st.integers(1, 6), st.sampled_from([6, 9, 64]), st.sampled_from([18, 64]))
def test_answers_are_those_without_it(rows: list, max_sequences: int, max_batch_tokens: int, num_blocks: int) -> None:
    limits = {"max_sequences": max_sequences, "max_batch_tokens": max_batch_tokens, "num_blocks": num_blocks}
    _, plain = run(rows, lookup=False, **limits)
    _, guessed = run(rows, lookup=True, **limits)
    for one, other in zip(plain, guessed, strict=True):
        assert (one.output_ids, one.finish_reason) == (other.output_ids, other.finish_reason)
        assert one.logprobs == other.logprobs


def test_guesses_are_made_and_save_steps() -> None:
    rows = [([1, 2, 3, 4, 5, 6, 7, 8], {"max_new_tokens": 50})]
    plain, _ = run(rows, lookup=False)
    guessing, _ = run(rows, lookup=True)
    assert isinstance(plain.model, ToyModel) and isinstance(guessing.model, ToyModel)
    assert guessing.speculation.accepted >= 10
    assert len(guessing.model.batches) == len(plain.model.batches) - guessing.speculation.accepted
    assert plain.speculation.proposed == 0


def test_forced_tokens_are_checked_like_guesses() -> None:
    class Fixed:
        """Allows one text, and says so ahead."""

        text, told = [4, 8, 15, 16, 23, 30, 4, 8], 0

        def allowed(self) -> np.ndarray:
            return np.arange(VOCABULARY) == self.text[self.told]

        def advance(self, token_id: int) -> None:
            assert token_id == self.text[self.told]
            self.told += 1

        def forced(self) -> list[int]:
            return [*self.text[self.told : self.told + 3], 39]

    request = make_request([1], max_new_tokens=8)
    request.constraint = Fixed()
    model = ToyModel(VOCABULARY)
    engine = Engine(model)
    engine.add(request)
    list(engine.run())
    assert request.output_ids == Fixed.text
    assert len(model.batches) < 8


@pytest.mark.parametrize("stop", ["cab", "abca", "zzz"])
def test_a_stop_string_inside_right_guesses_ends_the_answer_there(stop: str) -> None:
    script, prompt = b"abcabcabcabcabcabcabc", b"abcabcabc"
    found = []
    for lookup in (False, True):
        request = make_request(list(prompt), context=512, max_new_tokens=18, stop=[stop])
        model = ScriptModel(script, len(prompt))
        generator = TextGenerator(Engine(model, lookup=lookup), ByteTokenizer())
        generator.add(EncodedPrompt(0, Prompt("0", "0", text=prompt.decode()), "", list(prompt), request.generation))
        events: list[TextEvent] = []
        while generator.busy:
            events += [event for event in generator.step() if isinstance(event, TextEvent)]
        answer = events[-1].answer
        tokens = sum(event.tokens for event in events)
        assert tokens == len(answer.request.output_ids) and [event.first for event in events].count(True) == 1
        completed = generator.engine.metrics.completion_tokens
        found.append((answer.text, answer.request.output_ids, answer.request.finish_reason, completed))
    assert found[0] == found[1]


def test_a_lookup_continues_the_last_match() -> None:
    lookup = Lookup([1, 2, 3, 4, 1, 2, 3, 5, 9])
    assert lookup.guess([], 4) == []
    assert lookup.guess([1, 2, 3], 2) == [5, 9]
    assert lookup.guess([1, 2, 3, 5], 9) == [9, 1, 2, 3, 5]


@given(st.floats(1e-4, 1), st.floats(0, 1e-2), st.lists(st.integers(1, 80), min_size=3, unique=True))
def test_the_cost_of_a_token_is_found_from_steps(fixed: float, each: float, sizes: list[int]) -> None:
    cost = StepCost()
    for size in sizes:
        cost.note(size, fixed + each * size)
    assert cost.share_of_token(10) == pytest.approx(each / (fixed + 10 * each), abs=0.01)


def test_results_of_several_tokens_a_row_are_laid_out_row_by_row() -> None:
    from inference.models.step import SequenceStep

    sequences = [
        SequenceStep([1, 2, 3], 4, [1, 2], num_logits=3),
        SequenceStep([5] * 6, 0, [3, 4]),
        SequenceStep([7], 2, [5]),
    ]
    batch = StepBatch.build(sequences, 4)
    assert batch.logits_index.tolist() == [0, 1, 2, 8, 9]
    assert StepResult.of_logits(np.zeros((5, 3), np.float32), batch).best.tolist() == [0] * 5
    assert LONGEST > 1
