"""The protocol that tells the sampler which tokens of a structured answer may come next.

Grammars, JSON schemas and lists of choices implement it; the engine knows nothing about them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class TokenConstraint(Protocol):
    """Restricts the tokens of one answer. It belongs to one request and is used by one thread at a time.

    For each token the sampler calls `allowed` once, masks the logits with it, chooses a token, and calls `advance` with
    it. The calls follow the order of the answer, regardless of other rows, and no token is ever taken back: a token
    that speculation proposes is passed to `advance` only once it is chosen.
    """

    def allowed(self) -> np.ndarray | None:
        """Returns which tokens may come next: bool [N], N at most the vocabulary's size. Ids from N on may not.

        None allows every token. The end-of-sequence tokens are ordinary tokens here: allow one if the answer may
        end.
        """
        ...

    def advance(self, token_id: int) -> None:
        """Takes the chosen token, including the one that ends the answer."""
        ...

    def forced(self) -> Sequence[int]:
        """Returns tokens that must come next, such as the fixed text of a schema; empty if none are known.

        The engine runs them through the model in one step instead of one step each. They are still checked against
        `allowed` one by one, so a wrong guess costs time but does not change the answer.
        """
        ...
