"""MindFormers checkpoints, of releases up to 1.5, whose tensors differ from Hugging Face's in more than names.

Experts: one tensor for all experts of a layer, `feed_forward.ffn.w1.weight` or, beside a shared expert,
`feed_forward.routed_experts.ffn.w1.weight` (w1, w2, w3: gate, down, up), [experts, out, in], or [experts, in, out] for
inference with grouped products (`use_gmm`). The shape shows which one applies.
DeepSeek-V3: projections are split by the use of their rows, and rotated rows are in the order of halves. Queries are
`l2q_nope_proj` and `l2q_pe_proj`, the latent and the rotated key `kv2l_latent_kv` and `kv2l_k_pe`, keys and values
`lkv2kv_k_nope` and `lkv2kv_v`.
Source: modules/layers.py and modules/transformer/moe.py of mindformers 1.1 to 1.3; research/mixtral, research/deepseek2
and research/deepseek3 (convert_weight.py) of its repository.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from inference.checkpoint.tensor import ITEM_SIZES, Checkpoint, StoredTensor
from inference.errors import CheckpointError
from inference.models.architecture.config import ModelConfig
from inference.models.architecture.latent import LatentConfig

_EXPERTS = re.compile(r"(.*\.)feed_forward\.(?:routed_experts\.)?ffn\.(w[123])\.weight")
PARTS = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_LATENT = re.compile(r"(.*\.)attention\.(l2q_nope_proj|kv2l_latent_kv|lkv2kv_k_nope)\.(weight|bias)")
# First tensor of a split projection -> the second tensor, and Hugging Face's name of the whole.
SECONDS = {
    "l2q_nope_proj": ("l2q_pe_proj", "q_b_proj"),
    "kv2l_latent_kv": ("kv2l_k_pe", "kv_a_proj_with_mqa"),
    "lkv2kv_k_nope": ("lkv2kv_v", "kv_b_proj"),
}


@dataclass(frozen=True, kw_only=True)
class TransposedTensor(StoredTensor):
    """A matrix that is stored transposed, with 32 or 16 bits per element."""

    whole: StoredTensor

    def read_into(self, out: np.ndarray) -> None:
        values = np.empty(self.whole.shape, np.float32)
        self.whole.read_into(values)
        out.reshape(self.shape)[:] = values.T

    def read_bytes_into(self, out: np.ndarray) -> None:
        values = np.empty(self.whole.shape, _raw(self))
        self.whole.read_bytes_into(values.reshape(-1).view(np.uint8))
        out.view(_raw(self)).reshape(self.shape)[:] = values.T

    def rows(self, begin: int, end: int) -> TransposedTensor:
        return _transposed(self.whole.columns(begin, end))

    def columns(self, begin: int, end: int) -> TransposedTensor:
        return _transposed(self.whole.rows(begin, end))

    @property
    def can_be_mapped(self) -> bool:
        return False


def _transposed(whole: StoredTensor) -> TransposedTensor:
    return TransposedTensor(
        name=whole.name, dtype=whole.dtype, shape=whole.shape[::-1], segments=whole.segments, whole=whole
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class JoinedTensor(StoredTensor):
    """The rows of two tensors, joined in one.

    Args:
        parts: the two tensors; their axes after the first are equal.
        order: for each row, its index in the rows of the first part followed by those of the second.
    """

    parts: tuple[StoredTensor, StoredTensor]
    order: np.ndarray

    def read_into(self, out: np.ndarray) -> None:
        self._read(out.reshape(self.shape), np.float32, lambda part, values: part.read_into(values))

    def read_bytes_into(self, out: np.ndarray) -> None:
        raw = _raw(self)
        self._read(
            out.view(raw).reshape(self.shape), raw, lambda part, values: part.read_bytes_into(values.view(np.uint8))
        )

    def _read(self, out: np.ndarray, dtype: Any, read: Any) -> None:
        rows = []
        for part in self.parts:
            values = np.empty(part.shape, dtype)
            read(part, values.reshape(-1))
            rows.append(values)
        out[:] = np.concatenate(rows)[self.order]

    def rows(self, begin: int, end: int) -> JoinedTensor:
        return replace(self, shape=(end - begin, *self.shape[1:]), order=self.order[begin:end])

    def columns(self, begin: int, end: int) -> JoinedTensor:
        first, second = (part.columns(begin, end) for part in self.parts)
        return replace(self, shape=(self.shape[0], end - begin), parts=(first, second))

    @property
    def can_be_mapped(self) -> bool:
        return False


def _raw(tensor: StoredTensor) -> Any:
    return np.uint16 if ITEM_SIZES[tensor.dtype] == 2 else np.uint32


def as_published(checkpoint: Checkpoint, config: ModelConfig, path: Path) -> Checkpoint:
    """Returns the checkpoint with tensors in Hugging Face's layout, under its names; other tensors are unchanged.

    Raises:
        CheckpointError: a tensor's shape does not fit the config, or the second tensor of a split projection is
            missing.
    """
    found: Checkpoint = {}
    used: set[str] = set()
    for name, tensor in checkpoint.items():
        experts, latent = _EXPERTS.fullmatch(name), _LATENT.fullmatch(name)
        if experts and config.experts:
            prefix, part = f"{experts[1]}mlp.experts.", PARTS[experts[2]]
            for index, expert in enumerate(_apart(tensor, part, config, path)):
                found[f"{prefix}{index}.{part}.weight"] = expert
        elif latent and config.latent:
            second, whole = SECONDS[latent[2]]
            other = f"{latent[1]}attention.{second}.{latent[3]}"
            if other not in checkpoint:
                raise CheckpointError(f"{path} has '{name}' and no '{other}'", "they are one matrix")
            order = _order(latent[2], config.num_heads, config.latent)
            found[f"{latent[1]}self_attn.{whole}.{latent[3]}"] = _joined(tensor, checkpoint[other], order, path)
            used.add(other)
        else:
            found[name] = tensor
    return {name: tensor for name, tensor in found.items() if name not in used}


def _apart(tensor: StoredTensor, part: str, config: ModelConfig, path: Path) -> Iterator[StoredTensor]:
    """Yields the experts in a tensor, each [out, in]."""
    assert config.experts is not None
    count, out, into = config.experts.routing.experts, config.experts.width, config.hidden_size
    if part == "down_proj":
        out, into = into, out
    if tensor.shape not in ((count, out, into), (count, into, out)):
        raise CheckpointError(
            f"{path} does not fit the config: '{tensor.name}' is {list(tensor.shape)}, the config says "
            f"{[count, out, into]}, or {[count, into, out]} for grouped products"
        )
    _, rows, columns = tensor.shape
    together = replace(tensor, shape=(count * rows, columns))
    for index in range(count):
        expert = replace(together.rows(index * rows, (index + 1) * rows), name=f"{tensor.name} ({index})", is_part=True)
        yield expert if (rows, columns) == (out, into) else _transposed(expert)


def _order(first: str, heads: int, latent: LatentConfig) -> np.ndarray:
    """Returns, for each row of a whole projection, its index in the rows of its two tensors."""
    if first == "lkv2kv_k_nope":
        return _by_head(heads, np.arange(latent.nope), np.arange(latent.value))
    turned = np.arange(latent.rope)
    if latent.interleaved:
        # Turn the second tensor's halves back into neighboring pairs.
        turned = turned.reshape(2, -1).T.reshape(-1)
    if first == "kv2l_latent_kv":
        return _by_head(1, np.arange(latent.rank), turned)
    return _by_head(heads, np.arange(latent.nope), turned)


def _by_head(heads: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    by_head = np.arange(heads)[:, None]
    firsts, seconds = by_head * len(first) + first, heads * len(first) + by_head * len(second) + second
    return np.concatenate([firsts, seconds], axis=1).reshape(-1)


def _joined(first: StoredTensor, second: StoredTensor, order: np.ndarray, path: Path) -> JoinedTensor:
    if first.shape[0] + second.shape[0] != len(order) or first.shape[1:] != second.shape[1:]:
        raise CheckpointError(
            f"{path} does not fit the config: '{first.name}' is {list(first.shape)} and '{second.name}' "
            f"{list(second.shape)}, the config says {len(order)} rows together"
        )
    return JoinedTensor(
        name=f"{first.name} and {second.name}",
        dtype=first.dtype,
        shape=(len(order), *first.shape[1:]),
        segments=first.segments + second.segments,
        parts=(first, second),
        order=order,
    )
