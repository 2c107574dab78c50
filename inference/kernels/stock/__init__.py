"""The decoder's operations in MindSpore's stock operators: every device has them, and they define what is right.

Knows shapes and arithmetic; knows nothing about checkpoints, requests or text. T is the number of tokens in a step, B
of sequences, Q the longest query, L the longest context (padded to whole blocks); H and K are query and key/value
heads, G = H / K, D the head dimension.

MindSpore charges some 25 microseconds for every operator of a graph with dynamic shapes, so the code below is written
for few operators: rotation is a gather and two products, masks and slots are made once a step and not once a layer.
"""

from inference.kernels.stock.attention import AttentionSublayer, StepGeometry, cache_shapes
from inference.kernels.stock.feed_forward import ExpertsSublayer, FeedForwardSublayer
from inference.kernels.stock.latent import LatentAttentionSublayer
from inference.kernels.stock.layers import Embedding, OutputHead, Sublayers
from inference.kernels.stock.parameters import empty, memory, zeros
from inference.kernels.stock.relative import RelativeAttentionSublayer, SourceGeometry, TargetGeometry

# Whether weights and cache can be kept narrower than float32.
NARROW = False

__all__ = [
    "NARROW",
    "AttentionSublayer",
    "Embedding",
    "ExpertsSublayer",
    "FeedForwardSublayer",
    "Sublayers",
    "LatentAttentionSublayer",
    "OutputHead",
    "RelativeAttentionSublayer",
    "SourceGeometry",
    "StepGeometry",
    "TargetGeometry",
    "cache_shapes",
    "empty",
    "memory",
    "zeros",
]
