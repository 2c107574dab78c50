"""Checkpoints published in a quantized format (`quantization_config`): GPTQ, AWQ, compressed-tensors and float8.

Each quantized linear layer X becomes one tensor `X.weight` [out, in] that is decoded as it is read. The layouts:

GPTQ (AutoGPTQ's and GPTQModel's `QuantLinear`): qweight int32 [in / 8, out], eight 4-bit values of a column in a word,
    lowest bits first (or four 8-bit values); qzeros int32 [groups, out / 8], packed in the same way along the row;
    scales [groups, out]; g_idx int32 [in], the group of each input, out of order with `desc_act`. A weight is
    (q - zero) * scale. Format `gptq` stores zero - 1, modulo 16; `gptq_v2` stores zero.
AWQ (AutoAWQ's `WQLinear_GEMM`): qweight int32 [in, out / 8], qzeros int32 [groups, out / 8], scales [groups, out]. The
    eight 4-bit values of a word, lowest bits first, belong to columns 0, 2, 4, 6, 1, 3, 5, 7; zeros are stored
    unchanged.
compressed-tensors (vllm-project/compressed-tensors): `int-quantized`, weight int8 [out, in] and weight_scale [out, 1],
    [out, groups] or one number; `pack-quantized`, weight_packed int32 [out, in / 8], lowest bits first, values plus
    half their range, weight_scale and weight_g_idx. Only symmetric weights. Our own kernels quantize activations per
    token and group, so stored scales for them are ignored.
8-bit floats of any method: see `float8`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inference.checkpoint.quantized_tensor import Codes, QuantizedTensor, narrowest_form, read_elements, read_values
from inference.checkpoint.tensor import CODES, FLOAT8, Checkpoint, StoredTensor
from inference.errors import CheckpointError, ConfigError
from inference.models.architecture.t5_config import AnyConfig
from inference.models.weights.float8 import Block, dequantized_floats
from inference.models.weights.parameters import hugging_face_name, tensor_places

KEY = "quantization_config"
# Column of a word's n-th value, lowest bits first; and its inverse, the value's index for each column.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
AWQ_PLACES = np.argsort(AWQ_ORDER)
WORD_BITS = 32
# Returns a tensor of a layer, given the last part of its name.
_Take = Callable[[str], StoredTensor]
# Stored beside a compressed weight: scales of activations, which our kernels compute themselves.
_SPARE = ("input_scale", "input_zero_point", "output_scale", "output_zero_point")


@dataclass(frozen=True)
class Scheme:
    """The quantization that `quantization_config` states.

    Args:
        method: gptq, awq, compressed-tensors, fp8 or fbgemm_fp8.
        layout: layout of the method's files: gptq or gptq_v2, gemm, int-quantized or pack-quantized, float8_e4m3.
        bits: bits per weight.
        group_size: columns that share a scale; None for whole rows.
        block: rows and columns that share a scale, for 8-bit floats; None for one scale per row or for the whole
            matrix.
    """

    method: str
    layout: str
    bits: int
    group_size: int | None = None
    block: Block | None = None

    @property
    def name(self) -> str:
        """Name of the quantization in messages."""
        if self.layout == FLOAT8:
            return f"{self.method}, 8-bit floats" + (" in blocks of {} x {}".format(*self.block) if self.block else "")
        groups = f"groups of {self.group_size}" if self.group_size else "a scale a row"
        return f"{self.method}, {self.bits} bit, {groups}"


def read_scheme(values: Mapping[str, Any], where: str) -> Scheme | None:
    """Reads the scheme from a model's config; None if the weights are not quantized.

    Raises:
        ConfigError: the scheme is not supported; the message names it.
    """
    given = values.get(KEY) or {}
    if not isinstance(given, Mapping):
        raise ConfigError(f"{where}: {KEY} is {given!r}", "it must be a mapping with quant_method")
    method = str(given.get("quant_method") or "")
    if not method:
        return None
    readers = {
        "gptq": _read_gptq,
        "awq": _read_awq,
        "compressed-tensors": _read_compressed,
        "fp8": _read_fp8,
        "fbgemm_fp8": lambda given, where: Scheme("fbgemm_fp8", FLOAT8, 8),
    }
    if method not in readers:
        raise _refused(where, f"quant_method {method}", f"read are {', '.join(readers)}, and GGUF files")
    return readers[method](given, where)


def _read_gptq(given: Mapping[str, Any], where: str) -> Scheme:
    layout = str(given.get("checkpoint_format") or "gptq")
    if layout not in ("gptq", "gptq_v2"):
        raise _refused(where, f"checkpoint_format {layout} of GPTQ", "read are gptq and gptq_v2")
    return Scheme("gptq", layout, _bits(given.get("bits"), where, (4, 8)), _group_size(given.get("group_size"), where))


def _read_awq(given: Mapping[str, Any], where: str) -> Scheme:
    layout = str(given.get("version") or "gemm").lower()
    if layout != "gemm":
        raise _refused(where, f"version {layout} of AWQ", "read is gemm")
    bits = _bits(given.get("bits", given.get("w_bit")), where, (4,))
    return Scheme("awq", layout, bits, _group_size(given.get("group_size", given.get("q_group_size")), where))


def _read_fp8(given: Mapping[str, Any], where: str) -> Scheme:
    form = given.get("fmt") or "e4m3"
    if form != "e4m3":
        raise _refused(where, f"fmt {form} of fp8", "read is e4m3")
    return Scheme("fp8", FLOAT8, 8, block=_block(given.get("weight_block_size"), "weight_block_size", where))


def _block(value: Any, key: str, where: str) -> Block | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2 or any(type(size) is not int or size <= 0 for size in value):
        raise ConfigError(f"{where}: {KEY} has {key} {value!r}", "it must be two numbers, of rows and of columns")
    return value[0], value[1]


def _read_compressed(given: Mapping[str, Any], where: str) -> Scheme:
    groups = given.get("config_groups")
    groups = list(groups.values()) if isinstance(groups, Mapping) else []
    weights = [group["weights"] for group in groups if isinstance(group, Mapping) and group.get("weights")]
    if not weights or any(rule != weights[0] for rule in weights) or not isinstance(weights[0], Mapping):
        raise _refused(where, f"compressed-tensors with {len(weights)} rules for weights", "read is one")
    rule, kind, bits = weights[0], weights[0].get("type", "int"), weights[0].get("num_bits")
    if kind not in ("int", "float") or (kind == "float" and bits != 8):
        raise _refused(where, f"compressed-tensors of type {kind}{bits or ''}", "read are int and float8")
    if rule.get("symmetric", True) is not True:
        raise _refused(where, "compressed-tensors with zero points", "read are symmetric weights")
    layout = str(given.get("format"))
    if layout == "naive-quantized":
        layout = f"{kind}-quantized"
    accepted = {"float-quantized": (8,)} if kind == "float" else {"int-quantized": (8,), "pack-quantized": (4, 8)}
    if layout not in accepted:
        raise _refused(where, f"format {layout} of compressed-tensors", f"read are {', '.join(accepted)}")
    if kind == "float":
        return Scheme(
            "compressed-tensors", FLOAT8, 8, block=_block(rule.get("block_structure"), "a block_structure", where)
        )
    bits = _bits(bits, where, accepted[layout])
    size = rule.get("group_size") if rule.get("strategy", "group") == "group" else None
    return Scheme("compressed-tensors", layout, bits, _group_size(size, where))


def _refused(where: str, what: str, accepted: str) -> ConfigError:
    return ConfigError(f"{where}: {what} is not supported", accepted)


def _bits(value: Any, where: str, accepted: tuple[int, ...]) -> int:
    if value not in accepted or isinstance(value, bool):
        raise _refused(where, f"{KEY} of {value} bits", f"read are {' and '.join(map(str, accepted))}")
    return int(value)


def _group_size(value: Any, where: str) -> int | None:
    if value in (None, -1):
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ConfigError(f"{where}: {KEY} has group_size {value!r}", "it must be a number of columns, or -1 for all")
    return value


@dataclass(frozen=True)
class _Packed:
    """The tensors of a packed linear layer, and its size.

    Args:
        weights: packed integers.
        scales: [groups, out] with GPTQ and AWQ, [out, groups] or less with compressed-tensors.
        zeros: packed zero points; None if the layout always uses the middle of the range.
        groups: the group of each input.
    """

    scheme: Scheme
    shape: tuple[int, int]
    weights: StoredTensor
    scales: StoredTensor
    zeros: StoredTensor | None
    groups: np.ndarray

    def values(self, begin: int, end: int) -> np.ndarray:
        return self.codes(begin, end).values()

    def codes(self, begin: int, end: int) -> Codes:
        values = self._weights(begin, end).astype(np.int16)
        values -= self.zero_points(begin, end)[:, self.groups] if self.zeros else self.offset
        return Codes(values, self.row_scales(begin, end), self.groups)

    @property
    def offset(self) -> int:
        """Number that was added to stored weights without zero points."""
        return 0 if self.scheme.layout == "int-quantized" else 1 << (self.scheme.bits - 1)

    def _weights(self, begin: int, end: int) -> np.ndarray:
        bits, layout = self.scheme.bits, self.scheme.layout
        if layout == "int-quantized":
            return read_elements(self.weights.rows(begin, end), np.int8)
        if layout == "pack-quantized":
            return _unpack(_words(self.weights.rows(begin, end)), bits)[:, : self.shape[1]]
        if layout == "gemm":
            return self._of_columns(self.weights, begin, end).T
        # A column's words are stored in consecutive rows.
        return _unpack(np.ascontiguousarray(_words(self.weights.columns(begin, end)).T), bits)

    def zero_points(self, begin: int, end: int) -> np.ndarray:
        """Returns the zero point of each row and group, int16 [rows, groups]."""
        assert self.zeros is not None
        stored = self._of_columns(self.zeros, begin, end).T.astype(np.int16)
        if self.scheme.layout == "gptq":
            stored = (stored + 1) & ((1 << self.scheme.bits) - 1)
        return stored

    def _of_columns(self, packed: StoredTensor, begin: int, end: int) -> np.ndarray:
        """Unpacks some columns of a matrix that is packed along its rows."""
        count = WORD_BITS // self.scheme.bits
        first, last = begin // count, -(-end // count)
        places = AWQ_PLACES if self.scheme.layout == "gemm" else None
        values = _unpack(_words(packed.columns(first, last)), self.scheme.bits, places)
        return values[:, begin - first * count : end - first * count]

    def row_scales(self, begin: int, end: int) -> np.ndarray:
        """Returns the scales, float32 [rows, groups]."""
        if self.scheme.method == "compressed-tensors":
            if self.scales.shape[:1] != self.shape[:1]:
                return np.full((end - begin, 1), read_values(self.scales).reshape(-1)[0], np.float32)
            return read_values(self.scales.rows(begin, end)).reshape(end - begin, -1)
        return np.ascontiguousarray(read_values(self.scales.columns(begin, end)).T)

    def tensor(self, name: str) -> QuantizedTensor:
        """Returns the layer as one tensor; reads its scales and zero points to find a format that holds them."""
        rows, half = self.shape[0], 1 << (self.scheme.bits - 1)
        lowest, highest = -half, half - 1
        if self.zeros is not None:
            zeros = self.zero_points(0, rows)
            lowest, highest = -int(zeros.max()), 2 * half - 1 - int(zeros.min())
        parts = [part for part in (self.weights, self.scales, self.zeros) if part is not None]
        return QuantizedTensor(
            name=name,
            dtype="float32",
            shape=self.shape,
            segments=tuple(segment for part in parts for segment in part.segments),
            source=self,
            form=narrowest_form(lowest, highest, self.groups, self.row_scales(0, rows)),
            scheme=self.scheme.name,
        )


def dequantized(checkpoint: Checkpoint, scheme: Scheme | None, model: AnyConfig, path: Path) -> Checkpoint:
    """Returns the checkpoint with one tensor for each quantized layer; other tensors are unchanged.

    Raises:
        CheckpointError: a part of a layer is missing, or its shape does not fit the others.
    """
    if scheme is None:
        return checkpoint
    if scheme.layout == FLOAT8:
        return _all_used(dequantized_floats(checkpoint, scheme.name, scheme.block, path), path)
    ending = {"int-quantized": ".weight", "pack-quantized": ".weight_packed"}.get(scheme.layout, ".qweight")
    found = [name for name, tensor in checkpoint.items() if name.endswith(ending) and tensor.dtype in ("int8", "int32")]
    if not found:
        raise CheckpointError(f"{path} holds no tensor *{ending} of integers", f"{KEY} says {scheme.name}")
    rest, whole = dict(checkpoint), {}
    known = {place.name for place in tensor_places(model, {f"{name[: -len(ending)]}.weight" for name in found})}
    for name in found:
        layer = name[: -len(ending)]
        whole[f"{layer}.weight"] = _layer(rest, layer, scheme, path).tensor(f"{layer}.weight")
        bias = rest.get(f"{layer}.bias")
        # AutoGPTQ wrote a bias of zeros for layers without a bias.
        is_spare = bias is not None and hugging_face_name(bias.name, model.storage.names) not in known
        if bias is not None and is_spare and not read_values(bias).any():
            del rest[f"{layer}.bias"]
    return {**_all_used(rest, path), **whole}


def _all_used(rest: Checkpoint, path: Path) -> Checkpoint:
    strange = next((tensor for tensor in rest.values() if tensor.dtype in CODES), None)
    if strange is not None:
        raise CheckpointError(f"{path}: tensor '{strange.name}' is of type {strange.dtype} and belongs to no layer")
    return rest


def _layer(rest: Checkpoint, layer: str, scheme: Scheme, path: Path) -> _Packed:
    """Removes the tensors of a layer from `rest`, and returns them."""

    def take(part: str) -> StoredTensor:
        tensor = rest.pop(f"{layer}.{part}", None)
        if tensor is None:
            raise CheckpointError(f"{path}: the quantized layer {layer} has no {part}", f"{KEY} says {scheme.name}")
        return tensor

    if scheme.method == "compressed-tensors":
        packed = _compressed_layer(rest, layer, scheme, take, path)
    else:
        weights, scales, zeros = take("qweight"), take("scales"), take("qzeros")
        count = WORD_BITS // scheme.bits
        if len(weights.shape) != 2 or len(scales.shape) != 2:
            raise _misshapen(path, layer, weights, scales)
        rows, columns = weights.shape[1], weights.shape[0] * count
        if scheme.method == "awq":
            rows, columns = weights.shape[1] * count, weights.shape[0]
        groups = _groups(rest.pop(f"{layer}.g_idx", None), columns, scheme)
        packed = _Packed(scheme, (rows, columns), weights, scales, zeros, groups)
        if scales.shape[1] != rows or zeros.shape != (scales.shape[0], -(-rows // count)):
            raise _misshapen(path, layer, weights, scales)
    count = _number_of_groups(packed)
    if len(packed.groups) != packed.shape[1] or packed.groups.min() < 0 or packed.groups.max() >= count:
        raise _misshapen(path, layer, packed.weights, packed.scales)
    return packed


def _compressed_layer(rest: Checkpoint, layer: str, scheme: Scheme, take: _Take, path: Path) -> _Packed:
    scales = take("weight_scale")
    for part in _SPARE:
        rest.pop(f"{layer}.{part}", None)
    if scheme.layout == "int-quantized":
        weights = take("weight")
        rows, columns, stored = *weights.shape[:2], weights.shape
    else:
        weights, shape = take("weight_packed"), take("weight_shape")
        rows, columns = (int(size) for size in read_elements(shape, np.int64).reshape(-1)[:2])
        stored = (rows, -(-columns // (WORD_BITS // scheme.bits)))
    if weights.shape != stored or len(stored) != 2 or scales.shape[:1] not in ((), (1,), (rows,)):
        raise _misshapen(path, layer, weights, scales)
    groups = _groups(rest.pop(f"{layer}.weight_g_idx", None), columns, scheme)
    return _Packed(scheme, (rows, columns), weights, scales, None, groups)


def _number_of_groups(packed: _Packed) -> int:
    scales = packed.scales.shape
    if packed.scheme.method != "compressed-tensors":
        return scales[0]
    return scales[1] if len(scales) == 2 and scales[0] == packed.shape[0] else 1


def _groups(stored: StoredTensor | None, columns: int, scheme: Scheme) -> np.ndarray:
    in_order = np.arange(columns) // (scheme.group_size or columns)
    if stored is None:
        return in_order
    groups = read_elements(stored, np.int32 if stored.dtype == "int32" else np.int64).astype(np.intp)
    # compressed-tensors writes -1 if all groups are in order.
    return in_order if (groups == -1).all() else groups


def _misshapen(path: Path, layer: str, weights: StoredTensor, scales: StoredTensor) -> CheckpointError:
    return CheckpointError(
        f"{path}: the parts of the quantized layer {layer} do not fit each other: weights {list(weights.shape)}, "
        f"scales {list(scales.shape)}",
        "fetch the files again",
    )


def _unpack(words: np.ndarray, bits: int, places: np.ndarray | None = None) -> np.ndarray:
    """Unpacks uint32 [rows, words] to uint8 [rows, values], lowest bits first, or each value from its given place."""
    count = WORD_BITS // bits
    shifts = (np.arange(count) if places is None else places).astype(np.uint32) * np.uint32(bits)
    values = (words[:, :, None] >> shifts) & np.uint32((1 << bits) - 1)
    return values.astype(np.uint8).reshape(len(words), -1)


def _words(tensor: StoredTensor) -> np.ndarray:
    return read_elements(tensor, np.uint32)
