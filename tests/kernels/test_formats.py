"""Weight formats: what packing keeps, and that the native packer is the reference's twin."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.kernels.formats import GROUP, Format, pack, to_bfloat16, unpack

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 200))


def matrix(shape: tuple[int, int], seed: int, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) * np.float32(scale)


def step_of(weights: np.ndarray, weight_format: Format) -> np.ndarray:
    """Distance between neighbouring levels around each element."""
    rows, columns = weights.shape
    padded = np.zeros((rows, -(-columns // GROUP) * GROUP), np.float32)
    padded[:, :columns] = np.abs(weights)
    largest = np.repeat(padded.reshape(rows, -1, GROUP).max(axis=2), GROUP, axis=1)[:, :columns]
    return largest / (127 if weight_format is Format.INT8 else 6)


@given(SHAPES, st.integers(0, 99), st.sampled_from(Format))
def test_row_bytes_are_what_packing_gives(shape: tuple[int, int], seed: int, weight_format: Format) -> None:
    packed = pack(matrix(shape, seed), weight_format)
    assert packed.shape == (shape[0], weight_format.row_bytes(shape[1]))
    assert unpack(packed, weight_format, shape[1]).shape == shape


@given(SHAPES, st.integers(0, 99), st.sampled_from([Format.INT8, Format.INT4]), st.sampled_from([0.05, 1.0, 300.0]))
def test_quantised_values_are_within_half_a_step(
    shape: tuple[int, int], seed: int, weight_format: Format, scale: float
) -> None:
    weights = matrix(shape, seed, scale)
    back = unpack(pack(weights, weight_format), weight_format, shape[1])
    # The scale is rounded to float16 (2^-11), and int4's scale may clip its outermost value by a level.
    slack = 0.55 if weight_format is Format.INT8 else 1.1
    assert (np.abs(back - weights) <= slack * step_of(weights, weight_format) + 1e-6 * scale).all()


def test_sixteen_bit_formats_round_to_nearest() -> None:
    weights = matrix((7, 33), 3)
    half = unpack(pack(weights, Format.FLOAT16), Format.FLOAT16, 33)
    assert np.array_equal(half, weights.astype(np.float16).astype(np.float32))
    brain = unpack(pack(weights, Format.BFLOAT16), Format.BFLOAT16, 33)
    assert (np.abs(brain - weights) <= np.abs(weights) * 2.0**-8).all()
    assert to_bfloat16(np.array([1.00390625, 1.01171875], np.float32)).tolist() == [0x3F80, 0x3F82]  # ties to even
    assert np.isnan(unpack(pack(np.full((1, 2), np.nan, np.float32), Format.BFLOAT16), Format.BFLOAT16, 2)).all()


def test_int4_takes_the_better_of_both_signs() -> None:
    # One outlier of either sign: a scale of fixed sign would clip it on one side.
    for sign in (1, -1):
        weights = np.linspace(-0.5, 0.5, 32, dtype=np.float32)[None]
        weights[0, 0] = sign * 1.0
        back = unpack(pack(weights, Format.INT4), Format.INT4, 32)
        assert np.abs(back - weights).max() < 0.09


@settings(deadline=None, max_examples=60)
@given(SHAPES, st.integers(0, 999), st.sampled_from([Format.INT8, Format.INT4]), st.sampled_from([0.05, 1.0, 300.0]))
def test_native_packer_gives_the_same_weights(
    shape: tuple[int, int], seed: int, weight_format: Format, scale: float
) -> None:
    library = pytest.importorskip("inference.kernels.library")
    weights = matrix(shape, seed, scale)
    ours = unpack(library.quantise(weights, weight_format), weight_format, shape[1])
    reference = unpack(pack(weights, weight_format), weight_format, shape[1])
    # A value on the border of two levels may fall to either.
    assert np.mean(np.abs(ours - reference) > 1e-3 * scale * 3) < 0.05
    assert (np.abs(ours - reference) <= 1.01 * step_of(weights, weight_format) + 1e-6 * scale).all()
