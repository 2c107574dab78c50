"""8-bit floating-point weights with separate scales: the float8 formats of DeepSeek-V3, compressed-tensors and others.

A linear layer X has X.weight [out, in] of type float8 e4m3 (a sign, 4 bits of exponent with bias 7, 3 of mantissa; no
infinity, S.1111.111 is NaN: arXiv 2209.05433, table 1) and its scales as X.weight_scale_inv or X.weight_scale. There is
one scale for each block of `weight_block_size` [rows, columns], where the last block may be cut off by the matrix's end
(DeepSeek-V3, README_WEIGHTS.md), one per row, [out] or [out, 1], or one for the whole matrix. A weight is its float8
value times its scale, under either name.
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
# Scales of activations and of a cache, stored beside a layer or in its attention; not needed, because neither is
# rounded.
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
    """A matrix of 8-bit floats, the source of a `QuantizedTensor`.

    Args:
        weights: [out, in].
        scales: one scale for each block.
        block: rows and columns that share a scale.
    """

    weights: StoredTensor
    scales: StoredTensor
    block: Block

    def values(self, begin: int, end: int) -> np.ndarray:
        """Returns rows [begin, end), float32 [rows, in]; exact except for the rounding of the product."""
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
    """Returns the checkpoint with one tensor for each layer of 8-bit floats; other tensors are unchanged.

    Args:
        scheme: the common name of the quantization.
        block: rows and columns that share a scale; None for one scale per row or for the whole matrix.

    Raises:
        CheckpointError: there is no such layer, or a layer's scales are missing or have the wrong shape.
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
    """Returns the rows and columns that share a scale, from the scales' shape."""
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
