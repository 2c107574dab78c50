"""The native output head: which token has the largest logit, and what is no logit."""

from __future__ import annotations

import numpy as np
import pytest

from inference.kernels.build import KernelBuildError, library_path
from inference.kernels.formats import Format, pack
from inference.kernels.weight import Weight

try:
    library_path()
except KernelBuildError as error:
    pytest.skip(str(error), allow_module_level=True)

pytestmark = pytest.mark.usefixtures("graph_mode")
VOCABULARY, HIDDEN = 40, 8
INF = np.inf


def answers(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best token of each row of logits [R, 40], and its value: row r of the input selects column r of the head."""
    from mindspore import Tensor

    from inference.kernels.native import OutputHead

    rows = len(logits)
    weights = np.zeros((VOCABULARY, HIDDEN), np.float32)
    weights[:, :rows] = logits.T
    norm = Weight(np.ones(HIDDEN, np.float32), Format.FLOAT32)
    head = OutputHead(VOCABULARY, HIDDEN, 0.0, norm, Weight(pack(weights, Format.FLOAT32), Format.FLOAT32))
    # The norm makes a single 1 the square root of the width.
    x = np.eye(rows, HIDDEN, dtype=np.float32)
    found = head(Tensor(x), Tensor(np.arange(rows, dtype=np.int32)), Tensor(np.zeros(1, np.int32)), ()).asnumpy()
    return found[:rows].astype(int), found[rows : 2 * rows] / np.float32(HIDDEN**0.5)


@pytest.mark.parametrize("at", [0, 15, 16, 37, 39])
def test_a_logit_of_minus_infinity_cannot_be_chosen_and_nan_is_a_failure(at: int) -> None:
    """In a whole panel of 16 rows, and in the last one, which has 8."""
    logits = np.random.default_rng(at).standard_normal((6, VOCABULARY)).astype(np.float32)
    # A product with 0 would make infinity NaN, so the largest and lowest numbers times the norm's factor overflow to
    # it.
    huge = np.finfo(np.float32).max
    logits[0, at] = -huge
    logits[1, :] = -huge
    logits[1, at] = 3
    logits[2, :] = -huge
    logits[3, at] = huge
    logits[4, at], logits[4, at - 1] = 7, 7
    best, values = answers(logits[:5])
    assert best[0] == logits[0].argmax() and best[1] == at and best[4] == sorted((at, (at - 1) % VOCABULARY))[0]
    np.testing.assert_allclose(values[[0, 1, 4]], [logits[0].max(), 3, 7], rtol=1e-6)
    assert best[2] == -1 and values[2] == -INF
    assert best[3] == -1 and np.isnan(values[3])
    logits[5, at] = np.nan
    best, values = answers(logits[5:])
    assert best[0] == -1 and np.isnan(values[0])
