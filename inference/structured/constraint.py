"""The tokens that a grammar allows next: implements the engine's `TokenConstraint` with llguidance.

Knows token ids; each constraint belongs to one answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from llguidance import LLMatcher


class GrammarConstraint:
    """Restricts one answer to a grammar.

    Args:
        matcher: in the grammar's initial state; owned by this constraint.
        size: size of the vocabulary.
        ends: tokens that end an answer; allowed once the grammar accepts the text.
    """

    def __init__(self, matcher: LLMatcher, size: int, ends: Sequence[int]):
        self._matcher, self._size, self._ends = matcher, size, list(ends)
        self._is_over = False

    def allowed(self) -> np.ndarray:
        """Returns the mask of allowed next tokens: bool [vocabulary]."""
        over = self._is_over or self._matcher.is_stopped()
        if over:
            mask = np.zeros(self._size, bool)
        else:
            bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
            mask = np.unpackbits(bits, bitorder="little")[: self._size].view(bool)
        if self._matcher.is_error():
            raise RuntimeError(f"the grammar failed: {self._matcher.get_error()}")
        if over or self._matcher.is_accepting():
            mask[self._ends] = True
        return mask

    def advance(self, token_id: int) -> None:
        """Advances the grammar by the sampled token."""
        self._is_over = self._is_over or token_id in self._ends or self._matcher.is_stopped()
        if not self._is_over:
            self._matcher.consume_token(token_id)

    def forced(self) -> Sequence[int]:
        """Returns the tokens that must come next."""
        return [] if self._is_over or self._matcher.is_stopped() else self._matcher.compute_ff_tokens()
