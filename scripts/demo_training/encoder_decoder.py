"""The T5 v1.1 architecture in plain PyTorch, with Hugging Face's parameter names, for training.

Relative position buckets follow Raffel et al. 2020 (https://arxiv.org/abs/1910.10683), section 2.1; the feed-forward
is gated (https://arxiv.org/abs/2002.05202). The output layer is the embedding. Knows nothing about data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .network import RMSNorm


@dataclass(frozen=True)
class T5Shape:
    """The sizes of a model, named as in config.json."""

    vocab_size: int
    d_model: int = 192
    d_kv: int = 32
    d_ff: int = 320
    num_layers: int = 2
    num_decoder_layers: int = 2
    num_heads: int = 6
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6


def buckets(queries: int, keys: int, shape: T5Shape, is_decoder: bool) -> Tensor:
    """Return the distance bucket of each key for each query [queries, keys]: exact if near, logarithmic if far."""
    distance = torch.arange(keys)[None] - torch.arange(queries)[:, None]
    count, base = shape.relative_attention_num_buckets, torch.zeros_like(distance)
    if is_decoder:
        distance = (-distance).clamp(min=0)
    else:
        count //= 2
        base, distance = (distance > 0) * count, distance.abs()
    exact = count // 2
    growth = (count - exact) / math.log(shape.relative_attention_max_distance / exact)
    far = exact + ((distance.clamp(min=1) / exact).log() * growth).long()
    return base + torch.where(distance < exact, distance, far.clamp(max=count - 1))


class Attention(nn.Module):
    """Attention with a separate `scale`, which is 1 in T5, whose query matrix includes it.

    Training keeps the usual scale separate, so that all matrices learn at one rate; `fold_scale` then folds it in.
    """

    def __init__(self, shape: T5Shape, has_bias: bool):
        super().__init__()
        inner = shape.num_heads * shape.d_kv
        self.heads, self.scale = shape.num_heads, shape.d_kv**-0.5
        self.q = nn.Linear(shape.d_model, inner, bias=False)
        self.k = nn.Linear(shape.d_model, inner, bias=False)
        self.v = nn.Linear(shape.d_model, inner, bias=False)
        self.o = nn.Linear(inner, shape.d_model, bias=False)
        if has_bias:
            self.relative_attention_bias = nn.Embedding(shape.relative_attention_num_buckets, shape.num_heads)
            nn.init.normal_(self.relative_attention_bias.weight, std=0.02)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        query, key, value = (
            layer(states).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, tokens, d_kv]
            for layer, states in ((self.q, x), (self.k, memory), (self.v, memory))
        )
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=self.scale)
        return self.o(out.transpose(1, 2).flatten(2))

    @torch.no_grad()
    def fold_scale(self) -> None:
        self.q.weight.mul_(self.scale)
        self.scale = 1.0


class SelfAttentionLayer(nn.Module):
    def __init__(self, shape: T5Shape, has_bias: bool):
        super().__init__()
        self.SelfAttention = Attention(shape, has_bias)
        self.layer_norm = RMSNorm(shape.d_model, shape.layer_norm_epsilon)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        normed = self.layer_norm(x)
        return x + self.SelfAttention(normed, normed, mask)


class CrossAttentionLayer(nn.Module):
    def __init__(self, shape: T5Shape):
        super().__init__()
        self.EncDecAttention = Attention(shape, has_bias=False)
        self.layer_norm = RMSNorm(shape.d_model, shape.layer_norm_epsilon)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        return x + self.EncDecAttention(self.layer_norm(x), memory, mask)


class GatedFeedForward(nn.Module):
    def __init__(self, shape: T5Shape):
        super().__init__()
        self.wi_0 = nn.Linear(shape.d_model, shape.d_ff, bias=False)
        self.wi_1 = nn.Linear(shape.d_model, shape.d_ff, bias=False)
        self.wo = nn.Linear(shape.d_ff, shape.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.wo(F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x))


class FeedForwardLayer(nn.Module):
    def __init__(self, shape: T5Shape):
        super().__init__()
        self.DenseReluDense = GatedFeedForward(shape)
        self.layer_norm = RMSNorm(shape.d_model, shape.layer_norm_epsilon)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.DenseReluDense(self.layer_norm(x))


class Block(nn.Module):
    def __init__(self, shape: T5Shape, has_bias: bool, is_decoder: bool):
        super().__init__()
        cross = [CrossAttentionLayer(shape)] if is_decoder else []
        self.layer = nn.ModuleList([SelfAttentionLayer(shape, has_bias), *cross, FeedForwardLayer(shape)])


class Stack(nn.Module):
    """The encoder, or the decoder, whose blocks also attend to the encoder's output."""

    def __init__(self, shape: T5Shape, is_decoder: bool):
        super().__init__()
        self.shape, self.is_decoder = shape, is_decoder
        layers = shape.num_decoder_layers if is_decoder else shape.num_layers
        self.block = nn.ModuleList(Block(shape, index == 0, is_decoder) for index in range(layers))
        self.final_layer_norm = RMSNorm(shape.d_model, shape.layer_norm_epsilon)

    def _self_mask(self, length: int) -> Tensor:
        """Return the distance bias [1, heads, length, length]; in a decoder, masked positions are minus infinity."""
        table = self.block[0].layer[0].SelfAttention.relative_attention_bias
        bias = table(buckets(length, length, self.shape, self.is_decoder)).permute(2, 0, 1)[None]
        if not self.is_decoder:
            return bias
        return bias.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), -math.inf)

    def forward(self, x: Tensor, source_mask: Tensor, memory: Tensor | None = None) -> Tensor:
        """Return the states of `x` [B, T, d_model]; `source_mask` [B, 1, 1, S] is 0 or minus infinity per token."""
        mask = self._self_mask(x.shape[1])
        if not self.is_decoder:
            mask = mask + source_mask
        for block in self.block:
            x = block.layer[0](x, mask)
            if memory is not None:
                x = block.layer[1](x, memory, source_mask)
            x = block.layer[-1](x)
        return self.final_layer_norm(x)


class T5(nn.Module):
    """T5 v1.1 with a tied output layer; `state_dict()` uses the names of T5ForConditionalGeneration."""

    def __init__(self, shape: T5Shape):
        super().__init__()
        self.shape = shape
        self.shared = nn.Embedding(shape.vocab_size, shape.d_model)
        self.encoder = Stack(shape, is_decoder=False)
        self.decoder = Stack(shape, is_decoder=True)
        self._initialize()

    def _initialize(self) -> None:
        """Draw normal weights; scale down those that write to the residual stream by its depth."""
        depth = 2 * self.shape.num_layers + 3 * self.shape.num_decoder_layers
        nn.init.normal_(self.shared.weight, std=1.0)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                scale = depth**-0.5 if name.endswith((".o", ".wo")) else 1.0
                nn.init.normal_(module.weight, std=scale * module.in_features**-0.5)

    def fold_scale(self) -> None:
        """Move the attention scale into the query matrices, as in T5."""
        for module in self.modules():
            if isinstance(module, Attention):
                module.fold_scale()

    def encode(self, sources: Tensor, pad: int) -> tuple[Tensor, Tensor]:
        """Return the encoder's states [B, S, d_model] of `sources` [B, S], and the padding mask [B, 1, 1, S]."""
        mask = torch.zeros(sources.shape).masked_fill(sources == pad, -math.inf)[:, None, None]
        return self.encoder(self.shared(sources), mask), mask

    def decode(self, inputs: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """Return logits [B, T, vocab] after each of `inputs` [B, T]."""
        states = self.decoder(self.shared(inputs), mask, memory)
        return states * self.shape.d_model**-0.5 @ self.shared.weight.T
