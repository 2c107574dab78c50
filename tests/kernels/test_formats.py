"""Weight formats: what packing keeps, and that the native packer is the reference's twin."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from examples import examples
from inference.kernels.formats import GROUP, Format, pack, pack_into, to_bfloat16, unpack

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 200))


def matrix(shape: tuple[int, int], seed: int, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) * np.float32(scale)


QUANTIZED = [weight_format for weight_format in Format if weight_format.quantized]


def by_group(weights: np.ndarray) -> np.ndarray:
    """[rows, columns] -> [rows, groups, 32], filled up with zeros as packing does."""
    rows, columns = weights.shape
    padded = np.zeros((rows, -(-columns // GROUP) * GROUP), np.float32)
    padded[:, :columns] = weights
    return padded.reshape(rows, -1, GROUP)


def rounding_of_half(values: np.ndarray) -> np.ndarray:
    """What rounding to float16 moves a value by, at most: half of its last bit, which is 2^-24 for the smallest."""
    return np.maximum(np.abs(values) * 2.0**-11, 2.0**-25)


def bound_of(weights: np.ndarray, weight_format: Format) -> np.ndarray:
    """How far packing moves each weight at most [rows, columns].

    A group has a scale s near L / n, L its largest magnitude: n is 127 with eight bits, between 6 and 8.2 with four.
    Let d be the rounding of s to float16. A weight between two levels moves by (s + d) / 2 at most. One beyond the last
    level is cut to it: with eight bits L = 127 s lies 127 d beyond it at most; with four bits, of levels [-8, 7],
    L = n s lies (n - 7) s + 8 d beyond it, which is the most for n = 8.2. In a group with a minimum, all of this is
    true of the distance from the group's middle, which float16 rounds too.
    """
    groups = by_group(weights)
    if weight_format.has_minimum:
        middles = (groups.min(axis=2) + groups.max(axis=2)) / 2
        largest = (groups.max(axis=2) - groups.min(axis=2)) / 2 + rounding_of_half(middles)
    else:
        largest = np.abs(groups).max(axis=2)
    if weight_format.is_four_bits:
        d = rounding_of_half(largest / 6)
        bound = np.maximum(largest / 6 + d, 2 * (1.2 * largest / 8.2 + 8 * d)) / 2
    else:
        d = rounding_of_half(largest / 127)
        bound = np.maximum((largest / 127 + d) / 2, 127 * d)
    # Products and quotients of float32 round too: a few last bits of what they are made of.
    bound += 2.0**-20 * np.abs(groups).max(axis=2)
    return np.repeat(bound, GROUP, axis=1)[:, : weights.shape[1]]


@given(SHAPES, st.integers(0, 99), st.sampled_from(Format))
def test_shape_equals_that_of_packed_data(shape: tuple[int, int], seed: int, weight_format: Format) -> None:
    packed = pack(matrix(shape, seed), weight_format)
    assert packed.shape == weight_format.shape(*shape)
    assert unpack(packed, weight_format, *shape).shape == shape


def test_bytes_match_the_layout_in_the_header_file() -> None:
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
def test_sixteen_bit_elements_are_kept_unchanged(native: bool) -> None:
    packer = pytest.importorskip("inference.kernels.library").pack_into if native else pack_into
    weights = matrix((19, 33), 2)
    for weight_format, elements in (
        (Format.FLOAT16, weights.astype(np.float16).view(np.uint16)),
        (Format.BFLOAT16, to_bfloat16(weights)),
    ):
        panels = np.zeros(weight_format.shape(19, 33), np.uint8)
        packer(elements, weight_format, panels, 0)
        assert np.array_equal(panels, pack(weights, weight_format))


@given(SHAPES, st.integers(0, 99), st.sampled_from(QUANTIZED), st.sampled_from([0.05, 1.0, 300.0]))
@example((4, 129), 40, Format.INT8, 0.05)
def test_quantized_values_are_within_half_a_step(
    shape: tuple[int, int], seed: int, weight_format: Format, scale: float
) -> None:
    weights = matrix(shape, seed, scale)
    back = unpack(pack(weights, weight_format), weight_format, *shape)
    assert (np.abs(back - weights) <= bound_of(weights, weight_format)).all()


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
@given(SHAPES, st.integers(0, 999), st.sampled_from(QUANTIZED), st.sampled_from([0.05, 1.0, 300.0]))
@example((4, 129), 40, Format.INT8, 0.05)
def test_native_packer_gives_weights_as_good(
    shape: tuple[int, int], seed: int, weight_format: Format, scale: float
) -> None:
    """A value on the border of two levels may fall to either, and scales may tie: the errors are the same."""
    library = pytest.importorskip("inference.kernels.library")
    weights = matrix(shape, seed, scale)
    panels = np.zeros(weight_format.shape(*shape), np.uint8)
    library.pack_into(weights, weight_format, panels)
    ours = unpack(panels, weight_format, *shape)
    reference = unpack(pack(weights, weight_format), weight_format, *shape)
    bound = bound_of(weights, weight_format)
    assert (np.abs(ours - weights) <= bound).all()
    # Of each group: what is minimized is the sum of squares before the scale is rounded to float16, which moves none of
    # its 32 values by more than 8.2 or 127 times the scale's rounding.
    groups, moved = by_group(weights), [by_group(values - weights) for values in (ours, reference)]
    norms = [np.sqrt((part.astype(np.float64) ** 2).sum(axis=2)) for part in moved]
    largest = np.abs(groups).max(axis=2)
    steps, levels = (8.2, 6) if weight_format.is_four_bits else (127, 127)
    slack = 2 * GROUP**0.5 * (steps * rounding_of_half(2 * largest / levels) + 2.0**-20 * largest)
    assert (np.abs(norms[0] - norms[1]) <= slack).all()
