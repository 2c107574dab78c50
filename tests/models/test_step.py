"""The flat batch of a step, against the words of its docstring."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from inference.models.step import SequenceStep, StepBatch

SEQUENCES = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 20)), min_size=1, max_size=6)


@given(SEQUENCES, st.integers(1, 7), st.booleans())
def test_every_token_is_where_it_belongs(lengths: list[tuple[int, int]], block_size: int, all_logits: bool) -> None:
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
