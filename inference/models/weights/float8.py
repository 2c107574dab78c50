"""Weights of 8-bit floats with scales beside them: DeepSeek-V3's float8, and what compressed-tensors and others write.

A linear layer X has X.weight [out, in] of type float8 e4m3 (a sign, 4 bits of exponent with bias 7, 3 of mantissa; no
infinity, S.1111.111 is NaN: arXiv 2209.05433, table 1) and its scales as X.weight_scale_inv or X.weight_scale: one for
each block of `weight_block_size` [rows, columns], the last of which the matrix's end may cut off (DeepSeek-V3,
README_WEIGHTS.md), one a row [out] or [out, 1], or one for all. A weight is its float8 value times its scale, whatever
the two names say.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inference.checkpoint.quantized_tensor import QuantizedTensor, read_elements, read_values
from inference.checkpoint.tensor import FLOAT8, Checkpoint, StoredTensor
from inference.errors import CheckpointError

Block = tuple[int, int]
SCALES = ("weight_scale_inv", "weight_scale")
# Beside a layer, and in the attention that it is of: scales of activations and of a cache, which are not rounded here.
SPARE = ("input_scale", "output_scale", "activation_scale_ub", "k_scale", "v_scale", "q_scale")


def _values_of_codes() -> np.ndarray:
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    values = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
    values[codes & 127 == 127] = np.nan
    return np.where(codes & 128, -values, values).astype(np.float32)


VALUES = _values_of_codes()


@dataclass(frozen=True)
class Float8:
    """A matrix of 8-bit floats: the source of a `QuantizedTensor`.

    Args:
        weights: [out, in].
        scales: as many as there are blocks.
        block: rows and columns with one scale.
    """

    weights: StoredTensor
    scales: StoredTensor
    block: Block

    def values(self, begin: int, end: int) -> np.ndarray:
        """Rows [begin, end), float32 [rows, in]; exact, but for the one rounding of a product."""
        height, width = self.block
        columns = self.weights.shape[1]
        values = VALUES[read_elements(self.weights.rows(begin, end), np.uint8)]
        scales = read_values(self.scales).reshape(-1, -(-columns // width))
        if width < columns:
            scales = np.repeat(scales, width, axis=1)[:, :columns]
        for index in range(begin // height, -(-end // height)):
            first, last = max(index * height, begin) - begin, min((index + 1) * height, end) - begin
            values[first:last] *= scales[index]
        return values


def dequantized_floats(checkpoint: Checkpoint, scheme: str, block: Block | None, path: Path) -> Checkpoint:
    """The checkpoint with one tensor for each layer of 8-bit floats; the others as they are.

    Args:
        scheme: what people call the quantization.
        block: rows and columns with one scale, where not a row or the whole has one.

    Raises:
        CheckpointError: there is no such layer, or one has no scales, or scales of another shape.
    """
    rest = dict(checkpoint)
    names = [name for name, tensor in checkpoint.items() if tensor.dtype == FLOAT8]
    if not names:
        raise CheckpointError(f"{path} holds no tensor of 8-bit floats", f"quantization_config says {scheme}")
    for name in names:
        layer = name.removesuffix(".weight")
        weights = rest[name]
        scales = next((rest.pop(f"{layer}.{part}") for part in SCALES if f"{layer}.{part}" in rest), None)
        if scales is None:
            raise CheckpointError(
                f"{path}: '{name}' is of 8-bit floats and has no {SCALES[0]}", f"quantization_config says {scheme}"
            )
        source = Float8(weights, scales, _block_of(weights, scales, block, path))
        rest[name] = QuantizedTensor(
            name=name,
            dtype="float32",
            shape=weights.shape,
            segments=weights.segments + scales.segments,
            source=source,
            form=None,
            scheme=scheme,
        )
        for owner in (layer, layer.rpartition(".")[0]):
            for part in SPARE:
                rest.pop(f"{owner}.{part}", None)
    return rest


def _block_of(weights: StoredTensor, scales: StoredTensor, block: Block | None, path: Path) -> Block:
    """What a scale is for, by the scales' shape."""
    if len(weights.shape) == 2:
        rows, columns = weights.shape
        if np.prod(scales.shape) == 1:
            return rows, columns
        if scales.shape in ((rows,), (rows, 1)):
            return 1, columns
        if block is not None and scales.shape == (-(-rows // block[0]), -(-columns // block[1])):
            return block
    blocks = f" in blocks of {block[0]} x {block[1]}" if block else ""
    raise CheckpointError(
        f"{path}: '{weights.name}' {list(weights.shape)}{blocks} does not fit its scales {list(scales.shape)}",
        "fetch the files again",
    )
