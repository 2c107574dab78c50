"""Sizes of the decoder's parts, as the kernels need them. Plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class AttentionShape:
    """One attention layer: H query heads and K key/value heads of size D on a residual stream of `hidden`.

    Args:
        window: how many positions back a token may look, itself included; None for all.
        num_blocks, block_size: of the paged cache; a slot is block * block_size + offset.
        half_cache: keep keys and values in float16.
    """

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    window: int | None
    num_blocks: int
    block_size: int
    half_cache: bool = False

    @property
    def slots(self) -> int:
        return self.num_blocks * self.block_size


@dataclass(frozen=True)
class FeedForwardShape:
    """A gated feed-forward of `width` on a residual stream of `hidden`."""

    hidden: int
    width: int
    eps: float


@dataclass(frozen=True)
class Part:
    """What a rank has of a model that several ranks share. Their results of each half, and of the embedding, are added.

    Args:
        is_first: whether it adds the residual.
        first_token: of its part of the vocabulary.
        group: stock operators' name of the ranks that share the model.
        handle: the native kernels' address of it.
    """

    is_first: bool
    first_token: int
    group: str = ""
    handle: int = 0


def windows_of(shapes: Sequence[AttentionShape]) -> tuple[int, ...]:
    """The windows that occur, in the order of a step's masks; 0 for none."""
    return tuple(sorted({shape.window or 0 for shape in shapes}))
