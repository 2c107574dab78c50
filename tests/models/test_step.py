"""The flat batch of a step, against the words of its docstring."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from inference.models.step import SequenceStep, StepBatch, StepResult

SEQUENCES = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 20)), min_size=1, max_size=6)


@given(SEQUENCES, st.integers(1, 7), st.booleans())
def test_every_token_is_in_its_position(lengths: list[tuple[int, int]], block_size: int, all_logits: bool) -> None:
    sequences, tokens, next_block = [], 100, 1
    for count, start in lengths:
        blocks = -(-(start + count) // block_size) + 1  # one more than needed, as the scheduler may hold
        table = list(range(next_block, next_block + blocks))[::-1]
        sequences.append(SequenceStep(list(range(tokens, tokens + count)), start, table))
        tokens, next_block = tokens + count, next_block + blocks
    batch = StepBatch.build(sequences, block_size, all_logits)

    flat = [(row, at) for row, (count, _) in enumerate(lengths) for at in range(count)]
    longest = max(count for count, _ in lengths)
    assert all(array.dtype == np.int32 and array.flags.c_contiguous for array in batch.arrays())
    assert batch.tokens.tolist() == list(range(100, 100 + len(flat)))
    assert batch.positions.tolist() == [lengths[row][1] + at for row, at in flat]
    for (row, at), slot in zip(flat, batch.slots, strict=True):
        position = lengths[row][1] + at
        assert slot == sequences[row].block_table[position // block_size] * block_size + position % block_size
    assert batch.query_index.shape == (len(lengths), longest)
    for index, (row, at) in enumerate(flat):
        assert batch.query_index[row, at] == index
        assert batch.token_index[index] == row * longest + at
    ends = [index for index, (row, at) in enumerate(flat) if at == lengths[row][0] - 1]
    assert batch.logits_index.tolist() == (list(range(len(flat))) if all_logits else ends)
    assert batch.query_starts.tolist() == [0, *(end + 1 for end in ends)]
    needed = [-(-(start + count) // block_size) for count, start in lengths]
    assert batch.block_tables.shape == (len(lengths), max(needed))
    for row, count in enumerate(needed):
        assert batch.block_tables[row, :count].tolist() == sequences[row].block_table[:count]
        assert not batch.block_tables[row, count:].any(), "padding is the null block"


def test_minus_infinity_is_a_token_that_cannot_be_chosen() -> None:
    """And NaN or infinity a failure; so in one piece, and over ranks that have a part of the vocabulary each."""
    inf, nan = np.inf, np.nan
    rows = np.array(
        [[1, -inf, 3, -inf], [-inf, -inf, -inf, 0], [-inf] * 4, [1, nan, 2, 3], [nan] * 4, [0, 1, inf, 2]], np.float32
    )
    expected = [2, 3, -1, -1, -1, -1]
    batch = StepBatch.build([SequenceStep([1] * len(rows), 0, [1])], 16, True)
    assert StepResult.of_logits(rows, batch).best.tolist() == expected
    parts = [StepResult.of_logits(rows[:, at : at + 2], batch, at) for at in (0, 2)]
    assert StepResult.of_parts(parts).best.tolist() == expected
