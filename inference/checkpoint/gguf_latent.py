"""DeepSeek's up projection of keys and values, which llama.cpp's converter splits in two.

The two tensors are attn_k_b [heads, rank, nope], which is transposed within each head, and attn_v_b [heads, value,
rank]; older files have Hugging Face's kv_b_proj [heads * (nope + value), rank] as attn_kv_b. Source:
conversion/deepseek.py in llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from inference.checkpoint.tensor import Checkpoint, StoredTensor
from inference.errors import CheckpointError

KEYS, VALUES, BOTH = "self_attn.k_b_proj.weight", "self_attn.v_b_proj.weight", "self_attn.kv_b_proj.weight"


@dataclass(frozen=True, kw_only=True)
class JoinedTensor(StoredTensor):
    """kv_b_proj [heads * (nope + value), rank], made of its two halves when it is read.

    Args:
        keys: [heads * rank, nope].
        values: [heads * value, rank].
        heads: number of heads.
    """

    keys: StoredTensor
    values: StoredTensor
    heads: int

    def read_into(self, out: np.ndarray) -> None:
        rank, nope = self.shape[1], self.keys.shape[1]
        keys, values = np.empty(self.keys.shape, np.float32), np.empty(self.values.shape, np.float32)
        self.keys.read_into(keys)
        self.values.read_into(values)
        rows = out.reshape(self.heads, -1, rank)
        rows[:, :nope] = keys.reshape(self.heads, rank, nope).transpose(0, 2, 1)
        rows[:, nope:] = values.reshape(self.heads, -1, rank)

    def rows(self, begin: int, end: int) -> JoinedTensor:
        """Returns the rows of whole heads."""
        size, rank, width = self.shape[0] // self.heads, self.shape[1], self.values.shape[0] // self.heads
        assert begin % size == 0 and end % size == 0
        first, last = begin // size, end // size
        return replace(
            self,
            shape=(end - begin, rank),
            keys=self.keys.rows(first * rank, last * rank),
            values=self.values.rows(first * width, last * width),
            heads=last - first,
        )


def join_latents(tensors: Checkpoint, heads: int) -> Checkpoint:
    """Returns the tensors with both halves of each kv_b_proj joined.

    Raises:
        CheckpointError: a half is missing or has another number of heads.
    """
    joined = dict(tensors)
    for name in [name for name in tensors if name.endswith(KEYS)]:
        keys, values = joined.pop(name), joined.pop(name.replace(KEYS, VALUES), None)
        if values is None or keys.shape[0] != heads * values.shape[1] or values.shape[0] % heads:
            raise CheckpointError(f"'{name}' and its half for values do not fit {heads} heads")
        both = name.replace(KEYS, BOTH)
        shape = (heads * keys.shape[1] + values.shape[0], values.shape[1])
        segments = keys.segments + values.segments
        joined[both] = JoinedTensor(both, "float32", shape, segments, keys=keys, values=values, heads=heads)
    return joined
