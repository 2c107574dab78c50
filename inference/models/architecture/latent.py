"""Multi-head latent attention, as a DeepSeek model's `config.json` states it, and how its tensors are rearranged.

Keys and values of all heads are projections of one short vector a position, the latent, beside which stands one rotated
key for all heads (DeepSeek-V2, arXiv 2405.04434, section 2.1). The cache holds these two alone. Their projections are
folded into query and output ("absorbed"), so that attention runs on what the cache holds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from inference.files.fields import Fields
from inference.kernels.formats import whole_panels, with_room
from inference.models.architecture.sizes import FACTOR, HEAD, WIDTH

# Of the norms of the latent and of the compressed query: DeepSeek's code sets it, whatever `rms_norm_eps` says.
LATENT_NORM_EPS = 1e-6


@dataclass(frozen=True)
class LatentConfig:
    """Sizes of latent attention with H heads.

    Args:
        rank: of the latent.
        query_rank: of the compressed query; 0 where queries are projected at once.
        nope, rope: parts of a query or key of a head: from the latent, and rotated.
        value: size of a head's value.
        scale: what scores are multiplied by.
        interleaved: the checkpoint rotates neighboring values; its rows are brought into the order of halves.
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
        """Of what the cache holds of a position."""
        return self.rank + self.rope

    def num_parameters(self, hidden: int, heads: int) -> int:
        """Weights of a layer's attention."""
        query = heads * self.query
        queries = hidden * self.query_rank + self.query_rank * (query + 1) if self.query_rank else hidden * query
        up = self.rank * (heads * (self.nope + self.value) + 1)
        return queries + hidden * self.width + up + heads * self.value * hidden


def read_latent(fields: Fields, scaling: Fields) -> LatentConfig:
    """The latent attention that a config.json states.

    Args:
        scaling: its `rope_scaling`: YaRN's `mscale_all_dim` sharpens the softmax.

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
    """DeepSeek's `mscale`, of queries and of keys: 0.1 * mscale_all_dim * ln(factor) + 1."""
    if scaling.get("mscale_all_dim") in (None, 0):
        return 1.0
    return (
        0.1
        * scaling.read_or("mscale_all_dim", FACTOR, 1.0)
        * math.log(max(1.0, scaling.read_or("factor", FACTOR, 1.0)))
        + 1
    )


def halves_of_pairs(rows: np.ndarray, heads: int, latent: LatentConfig) -> np.ndarray:
    """Rows [heads * size, in]: each head's last `rope` rows from neighboring pairs to pairs of its halves."""
    by_head = rows.reshape(heads, -1, *rows.shape[1:])
    plain, turned = by_head[:, : -latent.rope], by_head[:, -latent.rope :]
    return np.concatenate([plain, turned[:, 0::2], turned[:, 1::2]], 1).reshape(rows.shape)


def key_projection(rows: np.ndarray, heads: int, latent: LatentConfig) -> np.ndarray:
    """kv_b_proj [heads * (nope + value), rank] -> [heads * room, nope]: each head's part for keys, transposed.

    A head begins a panel, with room for whole panels; what is left over is 0.
    """
    return with_room(_by_head(rows, heads, latent)[:, : latent.nope].transpose(0, 2, 1))


def value_projection(rows: np.ndarray, heads: int, latent: LatentConfig) -> np.ndarray:
    """kv_b_proj [heads * (nope + value), rank] -> [heads * room, rank]: each head's part for values."""
    return with_room(_by_head(rows, heads, latent)[:, latent.nope :])


def key_factors(
    up: np.ndarray, down: np.ndarray, heads: int, latent: LatentConfig
) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """A low-rank addition to kv_b_proj, up [heads * (nope + value), r] down [r, rank], as (first row, up, down) of
    additions to what `key_projection` makes of it: (B A)^T = A^T B^T for each head, all of which share A.
    """
    by_head, room, turned = _by_head(up, heads, latent)[:, : latent.nope], whole_panels(latent.rank), down.T
    return [(head * room, turned, part.T) for head, part in enumerate(by_head)]


def value_factors(
    up: np.ndarray, down: np.ndarray, heads: int, latent: LatentConfig
) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """The same of what `value_projection` makes of it."""
    by_head, room = _by_head(up, heads, latent)[:, latent.nope :], whole_panels(latent.value)
    return [(head * room, part, down) for head, part in enumerate(by_head)]


def _by_head(rows: np.ndarray, heads: int, latent: LatentConfig) -> np.ndarray:
    return rows.reshape(heads, latent.nope + latent.value, -1)
