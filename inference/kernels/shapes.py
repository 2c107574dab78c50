"""Sizes of the decoder's parts, as the kernels need them. Plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Numbered as in `cpp/blocks.h`. gelu is exact, gelu_tanh its usual approximation.
ACTIVATIONS = ("silu", "gelu_tanh", "gelu")


@dataclass(frozen=True)
class AttentionShape:
    """One attention layer: H query heads and K key/value heads of size D on a residual stream of `hidden`.

    Args:
        window: how many positions back a token may look, itself included; None for all.
        num_blocks, block_size: of the paged cache; a slot is block * block_size + offset.
        scale: of scores.
        half_cache: keep keys and values in float16.
        softcap: bounds scores to softcap * tanh(score / softcap) (Gemma 2); None for no bound.
        slopes: what each head's scores lose for each position of distance (ALiBi), one a head; None for none.
    """

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    scale: float
    window: int | None
    num_blocks: int
    block_size: int
    half_cache: bool = False
    softcap: float | None = None
    slopes: tuple[float, ...] | None = None

    @property
    def slots(self) -> int:
        return self.num_blocks * self.block_size


@dataclass(frozen=True)
class FeedForwardShape:
    """A feed-forward of `width` on a residual stream of `hidden`.

    Args:
        activation: one of ACTIVATIONS.
        gated: it multiplies a second projection of the same width.
    """

    hidden: int
    width: int
    eps: float
    activation: str = "silu"
    gated: bool = True


def windows_of(shapes: Sequence[AttentionShape]) -> tuple[int, ...]:
    """The windows that occur, in the order of a step's masks; 0 for none."""
    return tuple(sorted({shape.window or 0 for shape in shapes}))
