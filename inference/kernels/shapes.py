"""Sizes of the decoder's parts that the kernels need. Plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Numbered as in `cpp/blocks.h`. gelu is exact, gelu_tanh its tanh approximation.
ACTIVATIONS = ("silu", "gelu_tanh", "gelu", "relu")
# Types of the KV cache, numbered as in `cpp/blocks.h`.
CACHE_DTYPES = ("float32", "float16", "int8")
# The tokens that a token attends to, numbered as in `cpp/blocks.h`: those up to itself, its whole sequence, its
# sequence's source, none.
SCOPES = ("causal", "whole", "cross", "store")


@dataclass(frozen=True)
class AttentionShape:
    """One attention layer: H query heads and K key/value heads of size D on a residual stream of `hidden`.

    Args:
        window: positions that a token may attend to, including its own; None for all.
        num_blocks, block_size: sizes of the paged cache; a slot is block * block_size + offset.
        scale: multiplies the scores.
        cache_dtype: one of CACHE_DTYPES; int8 has a float32 scale for each vector.
        softcap: bounds scores to softcap * tanh(score / softcap) (Gemma 2); None for no bound.
        slopes: amounts subtracted from the scores per position of distance (ALiBi), one per head; None for none.
        scope: one of SCOPES. `store` writes the keys and values that `cross` reads, and adds nothing to its input.
        reach: the largest distance that the score bias distinguishes, if there is such a bias (T5).
        norms_all_heads: a norm of queries spans all heads of a token (OLMo 2); the same for keys.
        norms_rotated: queries and keys are normalized after their rotation (Hunyuan).
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
    cache_dtype: str = "float32"
    softcap: float | None = None
    slopes: tuple[float, ...] | None = None
    scope: str = "causal"
    reach: int = 0
    norms_all_heads: bool = False
    norms_rotated: bool = False

    @property
    def slots(self) -> int:
        return self.num_blocks * self.block_size


@dataclass(frozen=True)
class LatentShape:
    """One layer of latent attention: H heads on a residual stream of `hidden`; the cache holds one vector per position.

    Args:
        rank, rope: sizes of the latent and of the rotated key in the cached vector.
        query_rank: size of the compressed query; 0 if there is none.
        nope: size of the part of a head's query that is matched with the latent.
        value: size of a head's value.
        scale: multiplies the scores.
        latent_eps: eps of the norms of the latent and the compressed query.
        num_blocks, block_size, cache_dtype: as in AttentionShape.
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
    cache_dtype: str = "float32"
    # Attributes that a step's geometry expects of every kind of attention.
    window: None = None
    slopes: None = None
    kv_heads: int = 1

    @property
    def slots(self) -> int:
        return self.num_blocks * self.block_size

    @property
    def width(self) -> int:
        """Size of the cached vector."""
        return self.rank + self.rope


@dataclass(frozen=True)
class FeedForwardShape:
    """A feed-forward of `width` on a residual stream of `hidden`.

    Args:
        activation: one of ACTIVATIONS.
        gated: whether the activation multiplies a second projection of the same width.
        parallel: its input is the normalized input of the preceding attention sublayer (`parallel_sublayers`).
    """

    hidden: int
    width: int
    eps: float
    activation: str = "silu"
    gated: bool = True
    parallel: bool = False


@dataclass(frozen=True)
class Routing:
    """How experts are chosen for a token.

    Args:
        experts, chosen: number of experts, and number chosen per token.
        scoring: function that turns router logits into scores, softmax or sigmoid.
        normalize: divide the weights of the chosen experts by their sum.
        scale: multiplies the weights.
        groups, chosen_groups: neighboring experts form groups; a token chooses only from its best groups.
        group_best: number of best experts whose scores add up to a group's score.
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
        shared_width: width of the expert that every token uses; 0 for none.
        shared_gate: scale the shared expert by the sigmoid of the router's last row.
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
        is_first: whether this rank adds the residual.
        first_token: first token of its part of the vocabulary.
        group: name of the ranks that share the model, for stock operators.
        handle: address of the group, for native kernels.
    """

    is_first: bool
    first_token: int
    group: str = ""
    handle: int = 0


def windows_of(shapes: Sequence[AttentionShape | LatentShape]) -> tuple[int, ...]:
    """Return the distinct windows, in the order of a step's masks; 0 for no window."""
    return tuple(sorted({shape.window or 0 for shape in shapes}))
