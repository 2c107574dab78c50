"""Multi-head latent attention: read it from a DeepSeek model's `config.json`, and rearrange its tensors.

The keys and values of all heads are projections of one short vector per position, the latent. Beside it there is one
rotated key for all heads (DeepSeek-V2, arXiv 2405.04434, section 2.1). The cache holds only these two. The projections
are folded into query and output ("absorbed"), so that attention runs directly on the cached vectors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from inference.files.fields import Fields
from inference.kernels.formats import whole_panels, with_room
from inference.models.architecture.sizes import FACTOR, HEAD, WIDTH

# Epsilon of the norms of the latent and of the compressed query: DeepSeek's code fixes it and ignores `rms_norm_eps`.
LATENT_NORM_EPS = 1e-6


@dataclass(frozen=True)
class LatentConfig:
    """Sizes of latent attention with H heads.

    Args:
        rank: size of the latent.
        query_rank: size of the compressed query; 0 if queries are projected directly.
        nope, rope: sizes of the two parts of a head's query or key: not rotated, and rotated.
        value: size of a head's value.
        scale: factor of the attention scores.
        interleaved: the checkpoint rotates neighboring values; its rows are reordered to halves.
    """

    rank: int
    query_rank: int
    nope: int
    rope: int
    value: int
    scale: float
    interleaved: bool

    @property
    def query(self) -> int:
        """Size of a head's query."""
        return self.nope + self.rope

    @property
    def width(self) -> int:
        """Number of values per position in the cache."""
        return self.rank + self.rope

    def num_parameters(self, hidden: int, heads: int) -> int:
        """Returns the number of weights of a layer's attention."""
        query = heads * self.query
        queries = hidden * self.query_rank + self.query_rank * (query + 1) if self.query_rank else hidden * query
        up = self.rank * (heads * (self.nope + self.value) + 1)
        return queries + hidden * self.width + up + heads * self.value * hidden


def read_latent(fields: Fields, scaling: Fields) -> LatentConfig:
    """Reads the latent attention from config.json.

    Args:
        scaling: its `rope_scaling`, because YaRN's `mscale_all_dim` sharpens the softmax.

    Raises:
        ConfigError: a size is missing or of the wrong type.
    """
    nope, rope = fields.integer("qk_nope_head_dim", reader=HEAD), fields.integer("qk_rope_head_dim", reader=HEAD)
    if rope % 2:
        raise fields.error("qk_rope_head_dim", "even, because rotary embedding turns pairs")
    return LatentConfig(
        rank=fields.integer("kv_lora_rank", reader=WIDTH),
        query_rank=0 if fields.get("q_lora_rank") is None else fields.integer("q_lora_rank", reader=WIDTH),
        nope=nope,
        rope=rope,
        value=fields.integer("v_head_dim", reader=HEAD),
        scale=(nope + rope) ** -0.5 * _sharpness(scaling) ** 2,
        interleaved=fields.flag("rope_interleave", True),
    )


def _sharpness(scaling: Fields) -> float:
    """Returns DeepSeek's `mscale` for queries and for keys: 0.1 * mscale_all_dim * ln(factor) + 1."""
    if scaling.get("mscale_all_dim") in (None, 0):
        return 1.0
    return (
        0.1
        * scaling.read_or("mscale_all_dim", FACTOR, 1.0)
        * math.log(max(1.0, scaling.read_or("factor", FACTOR, 1.0)))
        + 1
    )


def halves_of_pairs(rows: np.ndarray, heads: int, latent: LatentConfig) -> np.ndarray:
    """Reorders each head's last `rope` rows from neighboring pairs to halves; rows are [heads * size, in]."""
    by_head = rows.reshape(heads, -1, *rows.shape[1:])
    plain, turned = by_head[:, : -latent.rope], by_head[:, -latent.rope :]
    return np.concatenate([plain, turned[:, 0::2], turned[:, 1::2]], 1).reshape(rows.shape)


def key_projection(rows: np.ndarray, heads: int, latent: LatentConfig) -> np.ndarray:
    """kv_b_proj [heads * (nope + value), rank] -> [heads * room, nope]: each head's part for keys, transposed.

    Each head begins a panel and has room for whole panels; the padding is 0.
    """
    return with_room(_by_head(rows, heads, latent)[:, : latent.nope].transpose(0, 2, 1))


def value_projection(rows: np.ndarray, heads: int, latent: LatentConfig) -> np.ndarray:
    """kv_b_proj [heads * (nope + value), rank] -> [heads * room, rank]: each head's part for values."""
    return with_room(_by_head(rows, heads, latent)[:, latent.nope :])


def key_factors(
    up: np.ndarray, down: np.ndarray, heads: int, latent: LatentConfig
) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Turns a low-rank addition to kv_b_proj into additions to the result of `key_projection`.

    The given addition is up [heads * (nope + value), r] times down [r, rank]; the returned ones are (first row, up,
    down). For each head (B A)^T = A^T B^T, and all heads share A.
    """
    by_head, room, turned = _by_head(up, heads, latent)[:, : latent.nope], whole_panels(latent.rank), down.T
    return [(head * room, turned, part.T) for head, part in enumerate(by_head)]


def value_factors(
    up: np.ndarray, down: np.ndarray, heads: int, latent: LatentConfig
) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Turns a low-rank addition to kv_b_proj into additions to the result of `value_projection`."""
    by_head, room = _by_head(up, heads, latent)[:, latent.nope :], whole_panels(latent.value)
    return [(head * room, part, down) for head, part in enumerate(by_head)]


def _by_head(rows: np.ndarray, heads: int, latent: LatentConfig) -> np.ndarray:
    return rows.reshape(heads, latent.nope + latent.value, -1)
