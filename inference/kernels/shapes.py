"""Sizes of the decoder's parts, as the kernels need them. Plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Numbered as in `cpp/blocks.h`. gelu is exact, gelu_tanh its usual approximation.
ACTIVATIONS = ("silu", "gelu_tanh", "gelu", "relu")
# What a token attends to, numbered as there: those up to itself, its whole sequence, its sequence's source, nothing.
SCOPES = ("causal", "whole", "cross", "store")


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
        scope: one of SCOPES. `store` leaves keys and values that `cross` finds, and adds nothing to its input.
        reach: the farthest distance that the bias of scores tells apart, where there is such a bias (T5).
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
    scope: str = "causal"
    reach: int = 0

    @property
    def slots(self) -> int:
        return self.num_blocks * self.block_size


@dataclass(frozen=True)
class LatentShape:
    """One layer of latent attention: H heads on a residual stream of `hidden`; the cache holds one vector a position.

    Args:
        rank, rope: of the cache's vector: the latent, and the rotated key.
        query_rank: of the compressed query; 0 where there is none.
        nope: size of a head's query that meets the latent.
        value: size of a head's value.
        scale: of the scores.
        latent_eps: of the norms of latent and compressed query.
        num_blocks, block_size, half_cache: as in AttentionShape.
    """

    hidden: int
    heads: int
    rank: int
    query_rank: int
    nope: int
    rope: int
    value: int
    scale: float
    eps: float
    latent_eps: float
    num_blocks: int
    block_size: int
    half_cache: bool = False
    # What a step's geometry asks of every kind of attention.
    window: None = None
    slopes: None = None
    kv_heads: int = 1

    @property
    def slots(self) -> int:
        return self.num_blocks * self.block_size

    @property
    def width(self) -> int:
        """Of the cache's vector."""
        return self.rank + self.rope


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


@dataclass(frozen=True)
class Routing:
    """How a token chooses its experts.

    Args:
        experts, chosen: how many there are, and how many a token takes.
        scoring: what makes scores of router logits, softmax or sigmoid.
        normalize: the weights of the chosen experts are divided by their sum.
        scale: what the weights are multiplied by.
        groups, chosen_groups: neighboring experts form groups, of which only the best are open to a token.
        group_best: how many of a group's experts, the best ones, add up to its score.
    """

    experts: int
    chosen: int
    scoring: str = "softmax"
    normalize: bool = False
    scale: float = 1.0
    groups: int = 1
    chosen_groups: int = 1
    group_best: int = 1


@dataclass(frozen=True)
class ExpertsShape:
    """Experts, gated feed-forwards of `width`, on a residual stream of `hidden`.

    Args:
        shared_width: of the expert that every token takes; 0 for none.
        shared_gate: the last row of the router scales the shared expert, by its sigmoid.
    """

    hidden: int
    width: int
    shared_width: int
    shared_gate: bool
    eps: float
    routing: Routing


@dataclass(frozen=True)
class Part:
    """A rank's share of a model. The ranks' results are summed after each sublayer and after the embedding.

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


def windows_of(shapes: Sequence[AttentionShape | LatentShape]) -> tuple[int, ...]:
    """The windows that occur, in the order of a step's masks; 0 for none."""
    return tuple(sorted({shape.window or 0 for shape in shapes}))
