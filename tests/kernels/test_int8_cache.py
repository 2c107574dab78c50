"""Attention over an int8 cache against plain numpy without one, within a derived bound; for every instruction set."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples import examples
from inference.kernels import library
from inference.kernels.build import KernelBuildError, library_path, sets_of_this_machine
from inference.kernels.formats import Format, pack
from inference.kernels.shapes import AttentionShape
from inference.kernels.weight import Weight

try:
    library_path()
except KernelBuildError as error:
    pytest.skip(str(error), allow_module_level=True)

HEADS, KV_HEADS, BLOCK, BLOCKS = 4, 2, 16, 12


@pytest.fixture(params=[item.name for item in sets_of_this_machine()], autouse=True, scope="module")
def instruction_set(request: pytest.FixtureRequest) -> Iterator[None]:
    library.use_instruction_set(request.param)
    yield
    library.use_instruction_set(None)


def attend(x: np.ndarray, shape: AttentionShape, cuts: list[int]) -> np.ndarray:
    """Attention [tokens, H, D] of rows x, which are queries, keys and values; the steps begin at `cuts`."""
    from inference.kernels import native

    size, hidden = shape.head_dim, shape.hidden
    # Matrices that change nothing; the residual is subtracted below.
    weights = {
        "qkv": Weight(pack(np.eye(hidden, dtype=np.float32), Format.FLOAT32), Format.FLOAT32),
        "output": Weight(pack(np.eye(hidden, HEADS * size, dtype=np.float32), Format.FLOAT32), Format.FLOAT32),
    }
    keys, values = (np.zeros(sizes, np.int8) for sizes in native.cache_shapes(shape))
    layer = native.AttentionSublayer(shape, None, 0, 0, weights, (keys, values))
    table = np.random.default_rng(1).permutation(np.arange(1, BLOCKS))
    steps = [library.sublayer(layer.record, x[a:b], table, a) - x[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
    return np.concatenate(steps)[:, : HEADS * size].reshape(len(x), HEADS, size)


def transform(x: np.ndarray) -> np.ndarray:
    """Hadamard matrices of the largest power of two that divides the size, by Sylvester's construction."""
    order, matrix = x.shape[-1] & -x.shape[-1], np.ones((1, 1))
    while len(matrix) < order:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return (x.reshape(*x.shape[:-1], -1, order) @ matrix).reshape(x.shape) / order**0.5


@examples(10)
@given(
    size=st.sampled_from([8, 10, 24, 64, 80]),
    length=st.integers(1, 150),
    window=st.sampled_from([None, 5, 40]),
    outlier=st.sampled_from([1, 30]),
    seed=st.integers(0, 999),
    data=st.data(),
)
def test_results_agree_within_rounding(
    size: int, length: int, window: int | None, outlier: float, seed: int, data: st.DataObject
) -> None:
    """An element of a transformed vector is rounded by half its scale at most.

    So score j is off by at most d_j, half its scale times the sum of the query's magnitudes, and with d the largest, a
    weight by a factor of e^(2 d). A value's error is transformed back: no element exceeds half its scale times the root
    of the transform's order.
    """
    x = np.random.default_rng(seed).standard_normal((length, (HEADS + 2 * KV_HEADS) * size), np.float32)
    x[:, ::size] *= np.float32(outlier)
    scale = 0.3 / size**0.5
    shape = AttentionShape(x.shape[1], HEADS, KV_HEADS, size, 1e-5, scale, window, BLOCKS, BLOCK, cache_dtype="int8")
    cut = data.draw(st.integers(0, length))
    got = attend(x, shape, sorted({0, cut, length}))
    heads = x.astype(np.float64).reshape(length, -1, size).transpose(1, 0, 2)
    group = HEADS // KV_HEADS
    for head in range(HEADS):
        query, key, value = heads[head], heads[HEADS + head // group], heads[HEADS + KV_HEADS + head // group]
        steps = [np.abs(transform(part)).max(axis=1) / 254 for part in (key, value)]
        distance = np.arange(length)[:, None] - np.arange(length)
        is_seen = (distance >= 0) & (distance < (window or length))
        scores = np.where(is_seen, scale * query @ key.T, -np.inf)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        doubt = np.where(is_seen, scale * np.abs(transform(query)).sum(axis=1)[:, None] * steps[0], 0).max(axis=1)
        factor = np.exp(2 * doubt)[:, None]
        bound = (factor - 1) * (weights @ np.abs(value)) + factor * (weights @ steps[1])[:, None] * (
            size & -size
        ) ** 0.5
        assert (np.abs(got[:, head] - weights @ value) <= bound + 1e-5 * np.abs(x).max()).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_is_not_hidden(bad: float) -> None:
    x = np.ones((3, (HEADS + 2 * KV_HEADS) * 8), np.float32)
    x[1, HEADS * 8] = bad
    shape = AttentionShape(x.shape[1], HEADS, KV_HEADS, 8, 1e-5, 1.0, None, BLOCKS, BLOCK, "int8")
    got = attend(x, shape, [0, 1, 2, 3])
    assert np.isfinite(got[0]).all() and np.isnan(got[2]).all()
