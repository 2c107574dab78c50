"""Records that describe sublayers to the native kernels: one ctypes.Structure per struct of `cpp/records.h`.

Knows the fields; knows nothing about weights or MindSpore. `check_layout` compares all fields with the library's.
"""

from __future__ import annotations

import ctypes
from typing import Any, ClassVar

import numpy as np

from inference.errors import InferenceError

_NUMBER, _REAL, _POINTER = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p


class RecordError(InferenceError):
    """The native kernels cannot read a record."""


class RecordHeader(ctypes.Structure):
    """The header of every record: its size, so that no more is read than was written, and its kind."""

    _fields_: ClassVar = [("bytes", _NUMBER), ("kind", _NUMBER)]


class MatrixRecord(ctypes.Structure):
    """A matrix's format number and its address; 0 for none."""

    _fields_: ClassVar = [("format", _NUMBER), ("data", _POINTER)]


class LoraEntry(ctypes.Structure):
    """An adapter's addition to some rows of a product: up (down x).

    `offset` is the index of its part of down x within its adapter's; `down` [rank, columns], `up` [panels, rank, 16].
    """

    _fields_: ClassVar = [
        *((name, _NUMBER) for name in ("first_panel", "panels", "rank", "offset")),
        *((name, _POINTER) for name in ("down", "up")),
    ]


class LoraTable(ctypes.Structure):
    """All adapters' additions to one product: adapter a's entries are [starts[a - 1], starts[a])."""

    _fields_: ClassVar = [("adapters", _NUMBER), ("width", _NUMBER), ("starts", _POINTER), ("list", _POINTER)]


class Record(ctypes.Structure):
    """A record; omitted fields are 0."""

    KIND: ClassVar[int]

    def __init__(self, **fields: Any):
        unknown = fields.keys() - {field[0] for field in self._fields_}
        assert not unknown, unknown
        super().__init__(RecordHeader(ctypes.sizeof(self), self.KIND), **fields)

    def numbers(self) -> np.ndarray:
        """Return the record as int64, the type that operators take."""
        return np.frombuffer(bytes(self), np.int64)


class AttentionRecord(Record):
    """x + output(attention(qkv(norm(x)))); without a norm, of x itself."""

    KIND = 0
    _fields_: ClassVar = [
        ("header", RecordHeader),
        *((name, _NUMBER) for name in ("hidden", "heads", "kv_heads", "head_size", "block_size", "window")),
        *((name, _NUMBER) for name in ("cache_type", "scope", "reach", "norms_all_heads", "norms_rotated")),
        *((name, _REAL) for name in ("eps", "scale", "softcap")),
        *((name, _POINTER) for name in ("norm", "norm_bias", "post_norm", "rotation", "slopes", "distances")),
        ("qkv", MatrixRecord),
        *((name, _POINTER) for name in ("qkv_bias", "query_norm", "key_norm")),
        ("output", MatrixRecord),
        *((name, _POINTER) for name in ("output_bias", "keys", "values", "qkv_lora", "output_lora")),
    ]


class LatentRecord(Record):
    """x + output(latent attention)."""

    KIND = 3
    _fields_: ClassVar = [
        ("header", RecordHeader),
        *((name, _NUMBER) for name in ("hidden", "heads", "query_rank", "rank", "nope", "rope", "value")),
        *((name, _NUMBER) for name in ("block_size", "cache_type")),
        *((name, _REAL) for name in ("eps", "latent_eps", "scale")),
        *((name, _POINTER) for name in ("norm", "rotation")),
        ("down", MatrixRecord),
        *((name, _POINTER) for name in ("down_bias", "query_norm", "latent_norm")),
        *((name, MatrixRecord) for name in ("query_up", "key_up", "value_up", "output")),
        *((name, _POINTER) for name in ("output_bias", "cache", "down_lora", "query_up_lora")),
        *((name, _POINTER) for name in ("key_up_lora", "value_up_lora", "output_lora")),
    ]


class FeedForwardRecord(Record):
    """x + down(activation(gate(norm(x))) * up(norm(x))); without a norm, of x itself.

    If `parallel`, norm(x) comes from the preceding attention sublayer.
    """

    KIND = 1
    _fields_: ClassVar = [
        ("header", RecordHeader),
        *((name, _NUMBER) for name in ("hidden", "width", "activation", "gated", "parallel")),
        ("eps", _REAL),
        *((name, _POINTER) for name in ("norm", "norm_bias", "post_norm")),
        ("gate_up", MatrixRecord),
        ("gate_up_bias", _POINTER),
        ("down", MatrixRecord),
        *((name, _POINTER) for name in ("down_bias", "gate_up_lora", "down_lora")),
    ]


class ExpertsRecord(Record):
    """x + the outputs of the experts chosen by norm(x) and of the shared expert."""

    KIND = 2
    _fields_: ClassVar = [
        ("header", RecordHeader),
        *((name, _NUMBER) for name in ("hidden", "width", "shared_width", "shared_gate", "experts", "chosen")),
        *((name, _NUMBER) for name in ("groups", "chosen_groups", "group_best", "sigmoid", "normalize")),
        *((name, _REAL) for name in ("routed_scale", "eps")),
        *((name, _POINTER) for name in ("norm", "correction")),
        *((name, MatrixRecord) for name in ("router", "gate_up", "down", "shared_gate_up", "shared_down")),
        *((name, _POINTER) for name in ("router_lora", "gate_up_lora", "down_lora")),
        *((name, _POINTER) for name in ("shared_gate_up_lora", "shared_down_lora")),
    ]


class RanksRecord(Record):
    """The ranks that share each of the following sublayers."""

    KIND = 4
    _fields_: ClassVar = [("header", RecordHeader), ("group", _POINTER), ("adds_residual", _NUMBER)]


class HeadRecord(Record):
    """Final norm and logits."""

    KIND = 5
    _fields_: ClassVar = [
        ("header", RecordHeader),
        *((name, _NUMBER) for name in ("hidden", "vocabulary")),
        *((name, _REAL) for name in ("eps", "softcap")),
        *((name, _POINTER) for name in ("norm", "norm_bias")),
        ("weight", MatrixRecord),
        *((name, _POINTER) for name in ("bias", "lora")),
    ]


class EmbeddingRecord(Record):
    """Rows of the embedding; the ranks of `group` hold the rest of the vocabulary."""

    KIND = 6
    _fields_: ClassVar = [
        ("header", RecordHeader),
        *((name, _NUMBER) for name in ("hidden", "first_token", "tokens")),
        ("weight", MatrixRecord),
        ("group", _POINTER),
    ]


_ALL: tuple[type[ctypes.Structure], ...] = (
    RecordHeader,
    MatrixRecord,
    LoraEntry,
    LoraTable,
    AttentionRecord,
    LatentRecord,
    FeedForwardRecord,
    ExpertsRecord,
    RanksRecord,
    HeadRecord,
    EmbeddingRecord,
)


def describe() -> str:
    """Return one line per record: its name, its size, and name:offset:size of each field (as in `cpp/records.h`)."""
    return "".join(f"{' '.join(_describe(record))}\n" for record in _ALL)


def _describe(record: type[ctypes.Structure]) -> list[str]:
    places = [(name, getattr(record, name)) for name, *_ in record._fields_]
    fields = [f"{name}:{place.offset}:{place.size}" for name, place in places]
    return [record.__name__, str(ctypes.sizeof(record)), *fields]


def check_layout(theirs: str) -> None:
    """Compare the library's record layout with this module's.

    Raises:
        RecordError: they differ; the message names the first that does.
    """
    for ours, other in zip(describe().splitlines(), theirs.splitlines(), strict=True):
        if ours != other:
            raise RecordError(f"records.py has '{ours}', the kernels have '{other}'")
