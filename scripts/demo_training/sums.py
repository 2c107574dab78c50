"""Sums and differences of whole numbers from 0 to `LARGEST`, as a user might type them."""

from __future__ import annotations

import random
from collections.abc import Iterator

from .documents import Document, Exchange
from .holdout import is_held_out

LARGEST = 99
SIGNS = {"+": "plus", "-": "minus"}


def evaluate(first: int, sign: str, second: int) -> int:
    return first + second if sign == "+" else first - second


def pair_is_held_out(first: int, second: int) -> bool:
    """Whether two numbers never occur together in training, in either order, in a sum or a difference."""
    return is_held_out("sum", min(first, second), max(first, second))


def held_out_problems() -> Iterator[tuple[int, str, int]]:
    """Yield every problem that training never sees, in a fixed order."""
    for first in range(LARGEST + 1):
        for second in range(LARGEST + 1):
            if pair_is_held_out(first, second):
                for sign in SIGNS:
                    yield first, sign, second


def draw_problem(rng: random.Random, held_out: bool = False) -> tuple[int, str, int]:
    """Draw a random problem that is held out, or one that is not; small numbers are slightly more frequent."""
    while True:
        top = rng.choice((9, 20, LARGEST, LARGEST, LARGEST, LARGEST))
        first, second = rng.randint(0, top), rng.randint(0, top)
        if pair_is_held_out(first, second) == held_out:
            return first, rng.choice(tuple(SIGNS)), second


def completion(first: int, sign: str, second: int, space: str = " ") -> Document:
    """The main form: `2 + 3 =` and the answer ` 5`."""
    problem = space.join((str(first), sign, str(second), "="))
    return Document("sum", problem, f" {evaluate(first, sign, second)}")


def draw_document(rng: random.Random, held_out: bool = False) -> Document:
    return completion(*draw_problem(rng, held_out), space=" " if rng.random() < 0.85 else "")


def exchange(first: int, sign: str, second: int, rng: random.Random) -> Exchange:
    """Format a problem as a question to an assistant."""
    problem = f"{first} {sign} {second}"
    worded = f"{first} {SIGNS[sign]} {second}"
    questions = (
        f"What is {problem}?",
        f"What is {problem}?",
        f"{problem} =",
        f"{problem}",
        f"What is {worded}?",
    )
    return Exchange(rng.choice(questions), str(evaluate(first, sign, second)))
