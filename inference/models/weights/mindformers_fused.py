"""MindFormers checkpoints with fused matrices (`qkv_concat: True`): q, k and v in one, gate and up in another.

The order of the rows depends on the release, and the file does not show it. Up to 1.3 the matrices are stacked: all of
q, then k, then v; gate, then up. From 1.6 on they are interleaved: for each key/value head the rows of its query heads,
its key and its value; a row of gate, a row of up. Tensors with names of the newer style (`linear_qkv`, `linear_fc1`)
are always interleaved. Source: `qkv_concat` in mindformers' llama_transformer.py and convert_weight.py of each release.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from inference.checkpoint.tensor import ITEM_SIZES, Checkpoint, StoredTensor
from inference.errors import CheckpointError
from inference.models.architecture.config import ModelConfig

STACKED, INTERLEAVED = "stacked", "interleaved"
_QKV = re.compile(r"(.*\.)(?:attention\.w_qkv|self_attention\.(linear_qkv))\.(weight|bias)$")
_GATE_UP = re.compile(r"(.*\.)(?:feed_forward\.w_gate_hidden|mlp\.(linear_fc1))\.(weight|bias)$")
# Bytes read at a time.
CHUNK = 1 << 22


@dataclass(frozen=True, kw_only=True)
class PickedTensor(StoredTensor):
    """Some rows of a tensor: `count` rows from `offset` on in every `period` rows."""

    whole: StoredTensor
    period: int
    offset: int
    count: int
    first: int = 0
    """Which of the picked rows is the first."""

    def read_into(self, out: np.ndarray) -> None:
        rows = out.reshape(self.shape)
        row_bytes = math.prod(self.shape[1:]) * ITEM_SIZES[self.dtype]
        step = max(1, CHUNK // (self.period * row_bytes)) * self.count
        for begin in range(0, len(rows), step):
            end = min(begin + step, len(rows))
            start, stop = (self.first + begin) // self.count, -(-(self.first + end) // self.count)
            part = self.whole.rows(start * self.period, stop * self.period)
            values = np.empty(part.shape, out.dtype)
            self._read(part, values)
            picked = values.reshape(stop - start, self.period, *part.shape[1:])[
                :, self.offset : self.offset + self.count
            ]
            skipped = self.first + begin - start * self.count
            rows[begin:end] = picked.reshape(-1, *part.shape[1:])[skipped : skipped + end - begin]

    def read_bytes_into(self, out: np.ndarray) -> None:
        self.read_into(out.view(np.uint16 if ITEM_SIZES[self.dtype] == 2 else np.float32))

    def rows(self, begin: int, end: int) -> PickedTensor:
        return replace(self, shape=(end - begin, *self.shape[1:]), first=self.first + begin)

    @staticmethod
    def _read(part: StoredTensor, values: np.ndarray) -> None:
        if values.dtype == np.float32:
            part.read_into(values)
        else:
            part.read_bytes_into(values.view(np.uint8).reshape(-1))


def separate(checkpoint: Checkpoint, config: ModelConfig, layout: str | None, path: Path) -> Checkpoint:
    """Returns the checkpoint with fused matrices split, under Hugging Face's names; other tensors are unchanged.

    Args:
        layout: layout of matrices with the older names, `stacked` or `interleaved`.

    Raises:
        CheckpointError: the layout is not given, or a matrix does not have the number of rows that the config states.
    """
    head, groups = config.head_dim, config.num_kv_heads
    qkv = [("q_proj", config.group_size * head), ("k_proj", head), ("v_proj", head)]
    apart: Checkpoint = {}
    for name, tensor in checkpoint.items():
        if found := _QKV.fullmatch(name):
            prefix, parts, periods = "self_attn.", qkv, groups
        elif found := _GATE_UP.fullmatch(name):
            prefix, parts, periods = "mlp.", [("gate_proj", 1), ("up_proj", 1)], config.intermediate_size
        else:
            apart[name] = tensor
            continue
        used = INTERLEAVED if found[2] else layout
        if used is None:
            raise CheckpointError(
                f"{path}: '{name}' is joined of several matrices, and MindFormers' releases differ in how",
                "give --engine.qkv_layout stacked for one of MindFormers 1.0 to 1.3, interleaved for 1.6 or later",
            )
        if used == STACKED:
            parts, periods = [(part, count * periods) for part, count in parts], 1
        for part, picked in _pick(tensor, parts, periods, path).items():
            apart[f"{found[1].replace('decoder.', 'model.')}{prefix}{part}.{found[3]}"] = picked
    return apart


def _pick(
    tensor: StoredTensor, parts: Sequence[tuple[str, int]], periods: int, path: Path
) -> dict[str, PickedTensor | StoredTensor]:
    period = sum(count for _, count in parts)
    if not tensor.shape or tensor.shape[0] != period * periods:
        raise CheckpointError(
            f"{path} does not fit the config: '{tensor.name}' is {list(tensor.shape)}, the config says "
            f"{period * periods} rows"
        )
    picked: dict[str, PickedTensor | StoredTensor] = {}
    offset = 0
    for part, count in parts:
        name, shape = f"{tensor.name} ({part})", (count * periods, *tensor.shape[1:])
        if periods == 1:
            picked[part] = replace(tensor.rows(offset, offset + count), name=name)
        else:
            # As many bytes as its own, though not the same ones: enough to show progress and to identify the file.
            share = tensor.rows(offset * periods, (offset + count) * periods).segments
            picked[part] = PickedTensor(
                name=name,
                dtype=tensor.dtype,
                shape=shape,
                segments=share,
                whole=tensor,
                period=period,
                offset=offset,
                count=count,
            )
        offset += count
    return picked
