"""Speculation: guesses at a row's next tokens, which the model checks in the step that computes the row's own token.

A guess never changes an answer. The engine chooses every token as it would without one, from the logits of that
position and the random number of (seed, position), and keeps going through the guesses while they are what it chose. So
a wrong guess costs time alone, and this module weighs whether guesses pay.

Knows token ids and times; knows nothing about models, tensors or scheduling. Prompt lookup: Saxena 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from inference.engine.request import Request

# Tokens that must be alike before a guess is made: two are alike by accident too often.
NGRAM = 3
# The most tokens of a guess.
LONGEST = 16
# How fast the shares and times follow what happens.
SLOWNESS = 0.9
# Of guessed tokens that are right, assumed before there were any.
HOPE = 0.6
# A row whose guesses do not pay tries again after so many tokens.
PAUSE = 64


@dataclass
class Lookup:
    """What a row's own text says about how it goes on: the continuation of the last place that reads alike."""

    tokens: list[int]
    ends: dict[tuple[int, ...], int] = field(default_factory=dict)
    """Where each run of NGRAM tokens ended last, the one at the very end left out."""
    indexed: int = NGRAM
    taken: int = 0
    """Tokens of the answer that are in `tokens`."""
    share: float = HOPE
    """Of guessed tokens, those that were right, lately."""
    paused_until: int = 0

    @classmethod
    def of(cls, request: Request) -> Lookup:
        """Over the request's source and prompt; its answer follows as it grows."""
        return cls([*(request.source_ids or ()), *request.prompt_ids])

    def guess(self, output_ids: Sequence[int], most: int) -> list[int]:
        """At most `most` tokens that may follow; none where nothing reads alike."""
        self.tokens += output_ids[self.taken :]
        self.taken = len(output_ids)
        for end in range(self.indexed, len(self.tokens)):
            self.ends[tuple(self.tokens[end - NGRAM : end])] = end
        self.indexed = max(self.indexed, len(self.tokens))
        start = self.ends.get(tuple(self.tokens[-NGRAM:]))
        return [] if start is None else self.tokens[start : start + most]

    def note(self, guessed: int, right: int) -> None:
        """Takes how a guess went. What follows the first wrong token of a guess says nothing."""
        for token in range(min(right + 1, guessed)):
            self.share = SLOWNESS * self.share + (1 - SLOWNESS) * (token < right)


@dataclass
class StepCost:
    """Seconds of a decode step as a line over its tokens, fitted to what steps took (least squares, old ones fade)."""

    sums: list[float] = field(default_factory=lambda: [0.0] * 5)

    def note(self, tokens: int, seconds: float) -> None:
        """Takes what a step took."""
        terms = (1.0, tokens, tokens * tokens, seconds, tokens * seconds)
        self.sums = [0.98 * total + term for total, term in zip(self.sums, terms, strict=True)]

    def share_of_token(self, tokens: int) -> float:
        """The seconds of one more token, as a share of a step of `tokens`; 0 while all steps were alike."""
        count, x, xx, y, xy = self.sums
        spread = count * xx - x * x
        if count < 2 or spread < 1e-6 * max(xx, 1.0):
            return 0.0
        slope = max((count * xy - x * y) / spread, 0.0)
        step = max((y - slope * x) / count + slope * tokens, 1e-9)
        return slope / step


@dataclass
class Speculation:
    """Guesses for the rows of an engine.

    Attributes:
        proposed: tokens that were guessed and checked.
        accepted: of these, the right ones.
    """

    lookup: bool = False
    proposed: int = 0
    accepted: int = 0
    cost: StepCost = field(default_factory=StepCost)

    def guess(self, request: Request, rows: int, budget: int) -> list[int]:
        """Tokens that may follow a request's newest one.

        Args:
            rows: that decode in this step.
            budget: the most tokens.
        """
        most = min(budget, LONGEST, request.max_new_tokens - len(request.output_ids) - 1)
        if most < 1 or not request.generation.use_past:
            return []
        if request.constraint is not None and (forced := request.constraint.forced()):
            return list(forced[:most])
        if not self.lookup:
            return []
        if request.lookup is None:
            request.lookup = Lookup.of(request)
        found = request.lookup
        if len(request.output_ids) < found.paused_until:
            return []
        guessed = found.guess(request.output_ids, most)
        length = self._worthwhile(found.share, rows)
        if guessed and not length:
            found.paused_until, found.share = len(request.output_ids) + PAUSE, HOPE
        return guessed[:length]

    def _worthwhile(self, share: float, rows: int) -> int:
        """How many guessed tokens pay: a right one saves a row's part of a step, any costs its own time."""
        price = self.cost.share_of_token(rows) * rows
        length, chance = 0, share
        while length < LONGEST and chance > max(price, 0.15):
            length, chance = length + 1, chance * share
        return length

    def note(self, request: Request, guessed: int, right: int) -> None:
        """Takes how many of a request's guessed tokens were right."""
        self.proposed += guessed
        self.accepted += right
        if request.lookup is not None:
            request.lookup.note(guessed, right)
