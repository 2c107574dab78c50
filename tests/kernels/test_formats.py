"""Weight formats: what packing keeps, and that the native packer is the reference's twin."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples import examples
from inference.kernels.formats import GROUP, Format, pack, pack_into, to_bfloat16, unpack

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 200))


def matrix(shape: tuple[int, int], seed: int, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) * np.float32(scale)


def step_of(weights: np.ndarray, weight_format: Format) -> np.ndarray:
    """Distance between neighboring levels around each element."""
    rows, columns = weights.shape
    padded = np.zeros((rows, -(-columns // GROUP) * GROUP), np.float32)
    padded[:, :columns] = np.abs(weights)
    largest = np.repeat(padded.reshape(rows, -1, GROUP).max(axis=2), GROUP, axis=1)[:, :columns]
    return largest / (127 if weight_format is Format.INT8 else 6)


@given(SHAPES, st.integers(0, 99), st.sampled_from(Format))
def test_shape_is_what_packing_gives(shape: tuple[int, int], seed: int, weight_format: Format) -> None:
    packed = pack(matrix(shape, seed), weight_format)
    assert packed.shape == weight_format.shape(*shape)
    assert unpack(packed, weight_format, *shape).shape == shape


def test_bytes_are_where_the_header_file_says() -> None:
    # Row 17 of 20 is lane 1 of the second panel.
    weights = matrix((20, 70), 1)
    assert pack(weights, Format.FLOAT32)[1].view(np.float32)[69 * 16 + 1] == weights[17, 69]
    assert pack(weights, Format.FLOAT16)[1].view(np.float16)[69 * 16 + 1] == weights[17, 69].astype(np.float16)
    for weight_format, pair_bytes in ((Format.INT8, 64 + 16 * 64), (Format.INT4, 64 + 8 * 64)):
        panel = pack(weights, weight_format)[1].reshape(2, pair_bytes)
        # Column 37 is element 5 of the second group of the first pair.
        scale = float(panel[0, :64].view(np.float16)[16 + 1])
        words = panel[0, 64:].reshape(-1, 16, 4)
        q = int(words[8 + 1, 1, 1]) - 128 if weight_format is Format.INT8 else (int(words[4 + 1, 1, 1]) & 15) - 8
        assert q * scale == unpack(panel.reshape(1, -1), weight_format, 16, 70)[1, 37]
        assert abs(q * scale - weights[17, 37]) <= 1.1 * abs(scale)
        if weight_format is Format.INT4:  # Column 53 is element 21: the high half of byte 5.
            assert abs(((int(words[4 + 1, 1, 1]) >> 4) - 8) * scale - weights[17, 53]) <= 1.1 * abs(scale)


@given(SHAPES, st.integers(0, 99), st.sampled_from(Format), st.booleans(), st.data())
def test_a_matrix_may_be_packed_in_parts(
    shape: tuple[int, int], seed: int, weight_format: Format, native: bool, data: st.DataObject
) -> None:
    weights = matrix(shape, seed)
    cuts = sorted(data.draw(st.lists(st.integers(0, shape[0]), max_size=3)))
    packer = pytest.importorskip("inference.kernels.library").pack_into if native else pack_into
    whole, parts = (np.zeros(weight_format.shape(*shape), np.uint8) for _ in range(2))
    packer(weights, weight_format, whole, 0)
    for begin, end in zip([0, *cuts], [*cuts, shape[0]], strict=True):
        if begin < end:
            packer(weights[begin:end], weight_format, parts, begin)
    assert np.array_equal(whole, parts)


@pytest.mark.parametrize("native", [False, True])
def test_sixteen_bit_elements_are_taken_as_they_are(native: bool) -> None:
    packer = pytest.importorskip("inference.kernels.library").pack_into if native else pack_into
    weights = matrix((19, 33), 2)
    for weight_format, elements in (
        (Format.FLOAT16, weights.astype(np.float16).view(np.uint16)),
        (Format.BFLOAT16, to_bfloat16(weights)),
    ):
        panels = np.zeros(weight_format.shape(19, 33), np.uint8)
        packer(elements, weight_format, panels, 0)
        assert np.array_equal(panels, pack(weights, weight_format))


@given(SHAPES, st.integers(0, 99), st.sampled_from([Format.INT8, Format.INT4]), st.sampled_from([0.05, 1.0, 300.0]))
def test_quantized_values_are_within_half_a_step(
    shape: tuple[int, int], seed: int, weight_format: Format, scale: float
) -> None:
    weights = matrix(shape, seed, scale)
    back = unpack(pack(weights, weight_format), weight_format, *shape)
    # The scale is rounded to float16 (2^-11), and int4's scale may clip its outermost value by a level.
    slack = 0.55 if weight_format is Format.INT8 else 1.1
    assert (np.abs(back - weights) <= slack * step_of(weights, weight_format) + 1e-6 * scale).all()


def test_sixteen_bit_formats_round_to_nearest() -> None:
    weights = matrix((7, 33), 3)
    half = unpack(pack(weights, Format.FLOAT16), Format.FLOAT16, 7, 33)
    assert np.array_equal(half, weights.astype(np.float16).astype(np.float32))
    brain = unpack(pack(weights, Format.BFLOAT16), Format.BFLOAT16, 7, 33)
    assert (np.abs(brain - weights) <= np.abs(weights) * 2.0**-8).all()
    assert to_bfloat16(np.array([1.00390625, 1.01171875], np.float32)).tolist() == [0x3F80, 0x3F82]  # ties to even
    assert np.isnan(unpack(pack(np.full((1, 2), np.nan, np.float32), Format.BFLOAT16), Format.BFLOAT16, 1, 2)).all()


def test_int4_takes_the_better_of_both_signs() -> None:
    # One outlier of either sign: a scale of fixed sign would clip it on one side.
    for sign in (1, -1):
        weights = np.linspace(-0.5, 0.5, 32, dtype=np.float32)[None]
        weights[0, 0] = sign * 1.0
        back = unpack(pack(weights, Format.INT4), Format.INT4, 1, 32)
        assert np.abs(back - weights).max() < 0.09


@examples(60)
@given(SHAPES, st.integers(0, 999), st.sampled_from([Format.INT8, Format.INT4]), st.sampled_from([0.05, 1.0, 300.0]))
def test_native_packer_gives_the_same_weights(
    shape: tuple[int, int], seed: int, weight_format: Format, scale: float
) -> None:
    library = pytest.importorskip("inference.kernels.library")
    weights = matrix(shape, seed, scale)
    panels = np.zeros(weight_format.shape(*shape), np.uint8)
    library.pack_into(weights, weight_format, panels)
    ours = unpack(panels, weight_format, *shape)
    reference = unpack(pack(weights, weight_format), weight_format, *shape)
    # A value on the border of two levels may fall to either.
    assert np.mean(np.abs(ours - reference) > 1e-3 * scale * 3) < 0.05
    assert (np.abs(ours - reference) <= 1.01 * step_of(weights, weight_format) + 1e-6 * scale).all()
