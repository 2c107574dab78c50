"""The decoder's operations in MindSpore's stock operators: they run on every device and serve as the reference.

Knows shapes and arithmetic; knows nothing about checkpoints, requests or text. T is the number of tokens in a step, B
the number of sequences, Q the longest query, L the longest context (padded to whole blocks); H and K are the numbers of
query and key/value heads, G = H / K, D the head dimension.

MindSpore spends about 25 microseconds per operator of a graph with dynamic shapes, so this code uses few operators:
rotation is a gather and two products, and masks and slots are computed once per step rather than once per layer.
"""

from inference.kernels.stock.attention import AttentionSublayer, StepGeometry, cache_shapes
from inference.kernels.stock.feed_forward import ExpertsSublayer, FeedForwardSublayer
from inference.kernels.stock.latent import LatentAttentionSublayer
from inference.kernels.stock.layers import Embedding, OutputHead, Sublayers
from inference.kernels.stock.parallel_block import parallel_sublayers
from inference.kernels.stock.parameters import empty, memory, zeros
from inference.kernels.stock.relative import RelativeAttentionSublayer, SourceGeometry, TargetGeometry

# Whether weights and cache can be narrower than float32.
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
    "parallel_sublayers",
    "zeros",
]
