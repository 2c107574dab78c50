"""Speculation: guesses a row's next tokens, which the model checks in the step that computes the row's next token.

A guess never changes an answer. The engine chooses every token as it would without one, from the logits of that
position and the random number of (seed, position), and accepts guesses for as long as they match its choices. A wrong
guess only costs time, so this module estimates whether guesses pay off.

Knows token ids and times; knows nothing about models, tensors or scheduling. Prompt lookup: Saxena 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from inference.engine.request import Request

# Tokens that must match before a guess is made: two match by chance too often.
NGRAM = 3
# Maximum number of tokens in a guess.
LONGEST = 16
# The smoothing factor of the share of right guesses: the higher, the slower it changes.
SLOWNESS = 0.9
# The share of guessed tokens assumed to be right until some have been checked.
HOPE = 0.6
# A row whose guesses do not pay off tries again after this many tokens.
PAUSE = 64


@dataclass
class Lookup:
    """Guesses from a row's own text: the tokens that followed the last occurrence of its newest NGRAM tokens."""

    tokens: list[int]
    ends: dict[tuple[int, ...], int] = field(default_factory=dict)
    """Where each NGRAM of tokens last ended, except for the one at the very end of the text."""
    indexed: int = NGRAM
    taken: int = 0
    """Tokens of the answer that are in `tokens`."""
    share: float = HOPE
    """The recent share of guessed tokens that were right."""
    paused_until: int = 0

    @classmethod
    def of(cls, request: Request) -> Lookup:
        """Starts with the request's source and prompt; `guess` adds its answer as it grows."""
        return cls([*(request.source_ids or ()), *request.prompt_ids])

    def guess(self, output_ids: Sequence[int], most: int) -> list[int]:
        """Returns at most `most` tokens that may follow; none if there is no match."""
        self.tokens += output_ids[self.taken :]
        self.taken = len(output_ids)
        for end in range(self.indexed, len(self.tokens)):
            self.ends[tuple(self.tokens[end - NGRAM : end])] = end
        self.indexed = max(self.indexed, len(self.tokens))
        start = self.ends.get(tuple(self.tokens[-NGRAM:]))
        return [] if start is None else self.tokens[start : start + most]

    def note(self, guessed: int, right: int) -> None:
        """Records how many tokens of a guess were right. Tokens after the first wrong one are not counted."""
        for token in range(min(right + 1, guessed)):
            self.share = SLOWNESS * self.share + (1 - SLOWNESS) * (token < right)


@dataclass
class StepCost:
    """Seconds of a decode step as a linear function of its tokens: a least-squares fit with decaying weights."""

    sums: list[float] = field(default_factory=lambda: [0.0] * 5)

    def note(self, tokens: int, seconds: float) -> None:
        """Records the time of a step."""
        terms = (1.0, tokens, tokens * tokens, seconds, tokens * seconds)
        self.sums = [0.98 * total + term for total, term in zip(self.sums, terms, strict=True)]

    def share_of_token(self, tokens: int) -> float:
        """Returns the time of one more token as a share of a step of `tokens`; 0 while all steps had the same size."""
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
        proposed: guessed tokens that were checked.
        accepted: guessed tokens that were right.
    """

    lookup: bool = False
    proposed: int = 0
    accepted: int = 0
    cost: StepCost = field(default_factory=StepCost)

    def guess(self, request: Request, rows: int, budget: int) -> list[int]:
        """Returns tokens that may follow a request's newest one.

        Args:
            rows: rows that decode in this step.
            budget: maximum number of tokens.
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
        """Returns how many guessed tokens pay off: a right one saves its row's part of a step, but each costs time."""
        price = self.cost.share_of_token(rows) * rows
        length, chance = 0, share
        while length < LONGEST and chance > max(price, 0.15):
            length, chance = length + 1, chance * share
        return length

    def note(self, request: Request, guessed: int, right: int) -> None:
        """Records how many of a request's guessed tokens were right."""
        self.proposed += guessed
        self.accepted += right
        if request.lookup is not None:
            request.lookup.note(guessed, right)
