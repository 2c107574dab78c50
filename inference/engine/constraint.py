"""What a structured answer asks of the sampler: which tokens may come next.

A protocol alone: a grammar, a JSON schema or a list of choices implements it, and the engine knows none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class TokenConstraint(Protocol):
    """Restricts the tokens of one answer. It belongs to one request and is used by one thread at a time.

    For each token the sampler calls `allowed` once, masks the logits with it, chooses, and calls `advance` with what it
    chose. It does so in the order of the answer whatever runs beside it, and never takes a token back: tokens that
    speculation proposes are told only when they are chosen.
    """

    def allowed(self) -> np.ndarray | None:
        """The tokens that may come next: bool [N], N at most the vocabulary's size; ids from N on may not come.

        None allows every token. The end-of-sequence tokens are ordinary tokens here: allow one where the answer may
        end.
        """
        ...

    def advance(self, token_id: int) -> None:
        """Takes the token that was chosen, the one that ends the answer included."""
        ...

    def forced(self) -> Sequence[int]:
        """Tokens that must come next, such as the fixed text of a schema; empty if none are known.

        The engine runs them through the model in one step instead of one step each. They are still checked against
        `allowed` one by one, so a wrong guess costs time and changes nothing.
        """
        ...
