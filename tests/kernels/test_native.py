"""The native kernels against plain numpy, for every instruction set of this processor."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from examples import examples
from inference.kernels import library
from inference.kernels.build import KernelBuildError, library_path, sets_of_this_machine
from inference.kernels.formats import GROUP, PANEL, Format, pack, unpack

try:
    library_path()
except KernelBuildError as error:
    pytest.skip(str(error), allow_module_level=True)


@pytest.fixture(params=[item.name for item in sets_of_this_machine()], autouse=True, scope="module")
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    library.use_instruction_set(request.param)
    assert library.instruction_set() == request.param
    yield request.param
    library.use_instruction_set(None)


def rounded_activations(x: np.ndarray, weight_format: Format) -> tuple[np.ndarray, np.ndarray]:
    """x as an integer product sees it, int8 in groups of 32, symmetric; and how far that may be from ours.

    Ours divides in float32, so that a value whose quotient is on the border of two integers may fall to either.
    """
    if not weight_format.quantized:
        return x.astype(np.float64), np.zeros(x.shape)
    tokens, columns = x.shape
    padded = np.zeros((tokens, -(-columns // GROUP) * GROUP))
    padded[:, :columns] = x
    groups = padded.reshape(tokens, -1, GROUP)
    scale = np.abs(groups).max(axis=2, keepdims=True) / 127
    quotients = np.divide(groups, scale, out=np.zeros_like(groups), where=scale > 0)
    # Two roundings of float32, of quotients up to 127.
    is_border = np.abs(np.abs(quotients - np.floor(quotients)) - 0.5) <= 127 * 2.0**-22
    values, doubt = np.rint(quotients) * scale, is_border * scale
    return values.reshape(tokens, -1)[:, :columns], doubt.reshape(tokens, -1)[:, :columns]


def parts_of(weights: np.ndarray, packed: np.ndarray, weight_format: Format) -> np.ndarray:
    """Magnitudes of what a product sums: with minimums, those and the values without them are summed apart."""
    if not weight_format.has_minimum:
        return np.abs(weights)
    rows, columns = weights.shape
    apart = packed.copy()
    lanes = apart.reshape(len(apart), -1, PANEL * (weight_format.scale_bytes + 4 * weight_format.words))
    lanes[:, :, 2 * 2 * PANEL : 2 * 2 * 2 * PANEL] = 0
    without = unpack(apart, weight_format, rows, columns)
    return np.abs(without) + np.abs(weights - without)


def rounding_bound(x: np.ndarray, weights: np.ndarray, extras: tuple[np.ndarray | None, ...], out: np.ndarray) -> Any:
    """What float32 may round a product by: each of its terms and sums by 2^-24 of what is summed (Higham 2002, 3.1).

    A sum of n products has n + 1 roundings and, in integer formats, a scale's two and its product's two more. Then bias
    and residual are added, each sum rounded once.
    """
    roundings = weights.shape[1] + 5
    bound = 1.01 * roundings * 2.0**-24 * (np.abs(x) @ np.abs(weights).T) + 2.0**-23 * np.abs(out)
    for extra in extras:
        bound = bound + (0 if extra is None else 2.0**-23 * np.abs(extra))
    # Of products so small that float32 has no more bits for them.
    return bound + roundings * 2.0**-126


SIZES = st.tuples(st.integers(1, 40), st.integers(1, 70), st.integers(1, 200))


@examples(60)
@given(SIZES, st.sampled_from(Format), st.integers(0, 999), st.sampled_from([1e-4, 1.0, 1e4]), st.booleans())
@example((16, 51, 7), Format.FLOAT32, 51, 1e-4, True)
def test_linear(sizes: tuple[int, int, int], weight_format: Format, seed: int, scale: float, with_extras: bool) -> None:
    tokens, rows, columns = sizes
    generator = np.random.default_rng(seed)
    packed = pack(generator.standard_normal((rows, columns), dtype=np.float32), weight_format)
    x = generator.standard_normal((tokens, columns), dtype=np.float32) * np.float32(scale)
    bias = generator.standard_normal(rows, dtype=np.float32) if with_extras else None
    residual = generator.standard_normal((tokens, rows), dtype=np.float32) if with_extras else None
    weights = unpack(packed, weight_format, rows, columns).astype(np.float64)
    seen, doubt = rounded_activations(x, weight_format)
    expected = seen @ weights.T
    if with_extras:
        expected = residual + (expected + bias)
    got = library.linear(packed, weight_format, rows, x, bias, residual)
    bound = rounding_bound(seen, parts_of(weights, packed, weight_format), (bias, residual), expected)
    assert (np.abs(got - expected) <= bound + 1.01 * doubt @ np.abs(weights).T).all()


@examples(40)
@given(SIZES, st.sampled_from(Format), st.integers(0, 999))
def test_a_token_does_not_depend_on_its_neighbors(
    sizes: tuple[int, int, int], weight_format: Format, seed: int
) -> None:
    tokens, rows, columns = sizes
    generator = np.random.default_rng(seed)
    packed = pack(generator.standard_normal((rows, columns), dtype=np.float32), weight_format)
    x = generator.standard_normal((tokens, columns), dtype=np.float32)
    together = library.linear(packed, weight_format, rows, x)
    alone = np.concatenate([library.linear(packed, weight_format, rows, token[None]) for token in x])
    assert np.array_equal(together, alone)


@pytest.mark.parametrize("weight_format", Format)
def test_long_rows_and_many_tokens(weight_format: Format) -> None:
    generator = np.random.default_rng(5)
    packed = pack(generator.standard_normal((37, 2500), dtype=np.float32), weight_format)
    x = generator.standard_normal((65, 2500), dtype=np.float32)
    weights = unpack(packed, weight_format, 37, 2500).astype(np.float64)
    expected = rounded_activations(x, weight_format)[0] @ weights.T
    assert np.abs(library.linear(packed, weight_format, 37, x) - expected).max() <= 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("weight_format", Format)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_stays_nan_and_stays_in_its_row(weight_format: Format, bad: float) -> None:
    generator = np.random.default_rng(6)
    packed = pack(generator.standard_normal((5, 70), dtype=np.float32), weight_format)
    x = generator.standard_normal((8, 70), dtype=np.float32)
    clean = library.linear(packed, weight_format, 5, x)
    x[3, 40] = bad
    got = library.linear(packed, weight_format, 5, x)
    assert not np.isfinite(got[3]).any()
    keep = [0, 1, 2, 4, 5, 6, 7]
    assert np.array_equal(got[keep], clean[keep])


@examples(40)
@given(st.integers(1, 5), st.integers(1, 100), st.integers(0, 999))
def test_rms_norm(tokens: int, width: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    x, weight = generator.standard_normal((tokens, width)), generator.standard_normal(width)
    expected = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-5) * weight
    np.testing.assert_allclose(library.rms_norm(x, weight, 1e-5), expected, rtol=2e-5, atol=1e-6)


def test_thread_counts_agree() -> None:
    generator = np.random.default_rng(7)
    packed = pack(generator.standard_normal((130, 64), dtype=np.float32), Format.FLOAT32)
    x = generator.standard_normal((9, 64), dtype=np.float32)
    results = []
    for threads in (1, 2, 5):
        library.set_threads(threads)
        results.append(library.linear(packed, Format.FLOAT32, 130, x))
    library.set_threads(None)
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])


def test_calls_from_several_threads_do_not_interfere() -> None:
    """Two models may be in use: their calls wait for one another."""
    generator = np.random.default_rng(8)
    jobs = []
    for tokens, rows, columns, weight_format in ((3, 200, 64, Format.INT8), (1, 40, 300, Format.FLOAT32)):
        packed = pack(generator.standard_normal((rows, columns), dtype=np.float32), weight_format)
        x = generator.standard_normal((tokens, columns), dtype=np.float32)
        jobs.append((packed, weight_format, rows, x))
    expected = [library.linear(*job) for job in jobs]
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda turn: library.linear(*jobs[turn % 2]), range(600)))
    assert all(np.array_equal(result, expected[turn % 2]) for turn, result in enumerate(results))
