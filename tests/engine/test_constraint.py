"""Token constraints: the mask is asked for and told each token in order, in any batch."""

from __future__ import annotations

import numpy as np
import pytest
from toys import ToyModel, make_request

from inference.engine.engine import Engine
from inference.engine.request import FinishReason

VOCABULARY = 40


class Alternating:
    """Allows even and odd tokens in turns, and notes what it was told."""

    def __init__(self, forced: dict[int, list[int]] | None = None, size: int = VOCABULARY):
        self.told: list[int] = []
        self.asked = 0
        self._forced, self._size = forced or {}, size

    def allowed(self) -> np.ndarray:
        self.asked += 1
        return np.arange(self._size) % 2 == len(self.told) % 2

    def advance(self, token_id: int) -> None:
        self.told.append(token_id)

    def forced(self) -> list[int]:
        return self._forced.get(len(self.told), [])


class Anything(Alternating):
    def allowed(self) -> None:
        return None


@pytest.mark.parametrize("settings", [{}, {"do_sample": True, "seed": 4, "top_k": 3}, {"repetition_penalty": 1.5}])
def test_every_token_is_allowed_and_advances_the_constraint(settings: dict) -> None:
    requests = [make_request([1, 2, i], str(i), max_new_tokens=10, **settings) for i in range(6)]
    plain = [make_request([1, 2, i], str(i), max_new_tokens=10, **settings) for i in range(6)]
    for number, request in enumerate(requests):
        request.constraint = Alternating() if number % 2 else Anything()
    for group in (requests, plain):
        engine = Engine(ToyModel(VOCABULARY), max_sequences=4)
        for request in group:
            engine.add(request)
        list(engine.run())
    for number, request in enumerate(requests):
        constraint = request.constraint
        assert isinstance(constraint, Alternating)
        assert constraint.told == request.output_ids and len(request.output_ids) == 10
        if number % 2:
            assert [token % 2 for token in request.output_ids] == [0, 1] * 5 and constraint.asked == 10
        else:
            assert request.output_ids == plain[number].output_ids


def test_ids_outside_the_mask_are_excluded_and_an_empty_mask_fails_the_row() -> None:
    short, none = make_request([1], "a", max_new_tokens=6), make_request([2], "b", max_new_tokens=6)
    short.constraint, none.constraint = Alternating(size=10), Alternating(size=1)
    none.constraint.told.append(0)
    engine = Engine(ToyModel(VOCABULARY))
    engine.add(short)
    engine.add(none)
    list(engine.run())
    assert max(short.output_ids) < 10 and short.finish_reason is FinishReason.LENGTH
    assert none.finish_reason is FinishReason.ERROR and "leave no token to choose" in str(none.error)
