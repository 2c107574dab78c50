"""Samples from a flat distribution over a large vocabulary without sorting it.

Knows weights and order; knows nothing about requests. Tokens are counted into bins by the upper half of their score's
bits, which sort like the scores. Running sums over the bins show in which bin a sum is reached, so only that bin is
sorted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_MAGNITUDE = 0x7FFFFFFF
# Bound on how much the sum of a million weights depends on their order, relative to the sum.
_ROUNDING = 1e-9


def pick(scores: np.ndarray, weights: np.ndarray, drawn: float, top_p: float, min_p: float) -> int | None:
    """Returns the token that `drawn` selects among those that top-p and min-p keep, the likeliest first.

    Args:
        scores: float32 [vocabulary].
        weights: float64 [vocabulary], probabilities relative to the largest.
        drawn: a random number in [0, 1).

    Returns:
        None if the order of summation could decide the choice; the caller must then sort all tokens.
    """
    ranked = _Ranked.of(scores, weights)
    kept = ranked.whole
    if top_p < 1:
        # The last token kept reaches the sum.
        reached = ranked.reach(top_p * ranked.whole)
        if reached is None:
            return None
        kept = reached[1]
    if min_p > 0:
        kept = min(kept, float(weights[weights >= min_p].sum()))
    found = ranked.reach(drawn * kept)
    return None if found is None else found[0]


@dataclass(frozen=True)
class _Ranked:
    """Tokens by score, the largest first, and equal ones by id.

    Args:
        ranks: int32 [vocabulary], smaller for larger scores.
        bins: the upper half of each rank.
        ends: the sum of the weights up to the end of each bin.
    """

    weights: np.ndarray
    ranks: np.ndarray
    bins: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray, weights: np.ndarray) -> _Ranked:
        # The bits of a float32 sort like its value once those of negative numbers are flipped; adding 0 turns -0.0 into
        # 0.0.
        ranks = (scores + np.float32(0)).view(np.int32)
        # Compute in place: allocating memory for a whole vocabulary costs more than the arithmetic.
        flips = ranks >> 31
        flips &= _MAGNITUDE
        ranks ^= flips
        np.invert(ranks, out=ranks)
        bins = np.right_shift(ranks, 16, dtype=np.intp)
        bins += 1 << 15
        return cls(weights, ranks, bins, np.bincount(bins, weights).cumsum())

    @property
    def whole(self) -> float:
        return float(self.ends[-1])

    def reach(self, target: float) -> tuple[int, float] | None:
        """Returns the token at which the running sum exceeds `target`, and that sum; None if rounding could decide."""
        index = int(self.ends.searchsorted(target, side="right"))
        if index == len(self.ends):
            return None
        ids = np.flatnonzero(self.bins == index)
        ids = ids[self.ranks[ids].argsort(kind="stable")]
        before = self.ends[index - 1] if index else 0.0
        sums = np.concatenate([[before], before + self.weights[ids].cumsum()])
        at = int(sums.searchsorted(target, side="right"))
        if at in (0, len(sums)) or np.abs(sums - target).min() <= _ROUNDING * self.whole:
            return None
        return int(ids[at - 1]), float(sums[at])
