"""A layer whose attention and feed-forward read the same normalized input (GPT-J, Phi-2, Command R)."""

from __future__ import annotations

from mindspore import Tensor, nn

from inference.kernels.stock.attention import AttentionSublayer
from inference.kernels.stock.feed_forward import FeedForwardSublayer


class ParallelBlock(nn.Cell):
    """x + attention(norm(x)) + feed_forward(norm(x)); the norm is the attention's."""

    def __init__(self, attention: AttentionSublayer, feed_forward: FeedForwardSublayer):
        super().__init__()
        self.attention, self.feed_forward = attention, feed_forward

    def construct(self, x: Tensor, geometry: tuple) -> Tensor:
        normed = self.attention.norm(x)
        return self.feed_forward.add(normed, self.attention.add(normed, x, geometry), geometry)


def parallel_sublayers(attention: AttentionSublayer, feed_forward: FeedForwardSublayer) -> list:
    """Return sublayers that both read norm(x) and add to x; the norm is the attention's."""
    return [ParallelBlock(attention, feed_forward)]
