"""Runs prompts through a model without generating: embeddings, and the log probabilities of a prompt's own tokens.

The prompts run in steps of limited size between those of the engine, on free blocks of the same cache. Each function
here is a generator that pauses after every step, for `BackgroundEngine.interleave`. Knows token ids; knows nothing
about text or HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from inference.engine.request import TokenLogprob, cache_key_of
from inference.engine.sampler import token_logprob
from inference.errors import InputError
from inference.models.block_pool import BlockPool, chain
from inference.models.runner import StepModel
from inference.models.step import SequenceStep, StepBatch

# Maximum number of tokens in a step, and of logits in a step (256 MiB).
TOKENS_AT_ONCE, LOGITS_AT_ONCE = 512, 1 << 26
Pooling = Literal["mean", "last"]
Result = TypeVar("Result")
Steps = Generator[None, None, Result]


@dataclass(frozen=True)
class PassRow:
    """A prompt to run.

    Args:
        ids: its tokens, at least one, at most the model's context.
        adapter: its adapter's number in the model; 0 for none.
    """

    ids: Sequence[int]
    adapter: int = 0


def embeddings(model: StepModel, rows: Sequence[PassRow], pooling: Pooling, share: bool = False) -> Steps[np.ndarray]:
    """Computes embedding vectors of length 1, float32 [rows, hidden]: the mean of the tokens' states, or the last.

    Args:
        share: leave the prompts in the prefix cache.
    """
    found: list[np.ndarray] = [np.zeros(())] * len(rows)

    def take(indices: Sequence[int], steps: Sequence[SequenceStep]) -> None:
        states = model.hidden_states(StepBatch.build(steps, model.block_size, logit_rows=())).astype(np.float64)
        end = 0
        for index, step in zip(indices, steps, strict=True):
            own = states[end : end + len(step.tokens)]
            end += len(step.tokens)
            found[index] = own[-1] if pooling == "last" else found[index] + own.sum(axis=0)

    yield from _run(model, rows, TOKENS_AT_ONCE, take, share)
    vectors = np.stack(found)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)


def prompt_logprobs(
    model: StepModel, rows: Sequence[PassRow], alternatives: int, vocab_size: int, share: bool = False
) -> Steps[list[list[TokenLogprob]]]:
    """Computes the log probability of every token of each prompt except the first, given those before it.

    Args:
        alternatives: report this many of the most likely tokens at each position.
        share: leave the prompts in the prefix cache.
    """
    found: list[list[TokenLogprob]] = [[] for _ in rows]

    def take(indices: Sequence[int], steps: Sequence[SequenceStep]) -> None:
        logits = model.step(StepBatch.build(steps, model.block_size, all_logits=True)).logits
        place = 0
        for index, step in zip(indices, steps, strict=True):
            targets = rows[index].ids[step.start + 1 : step.start + 1 + len(step.tokens)]
            found[index] += [token_logprob(logits[place + i], id_, alternatives) for i, id_ in enumerate(targets)]
            place += len(step.tokens)

    yield from _run(model, rows, min(TOKENS_AT_ONCE, max(LOGITS_AT_ONCE // vocab_size, 1)), take, share)
    return found


def _run(
    model: StepModel,
    rows: Sequence[PassRow],
    most: int,
    take: Callable[[Sequence[int], Sequence[SequenceStep]], None],
    share: bool,
) -> Steps[None]:
    """Runs rows in groups; calls `take` with the indices and the parts of the rows in each step, then pauses.

    Args:
        most: maximum number of tokens in a step; a longer row runs in parts.
    """
    for group in _groups(model.blocks, rows, most):
        tables: list[list[int]] = [[] for _ in group]
        try:
            while not _take_blocks(model.blocks, tables, [len(rows[index].ids) for index in group]):
                yield  # the engine's rows hold the blocks
            for begin in range(0, max(len(rows[index].ids) for index in group), most):
                steps = [
                    SequenceStep(rows[index].ids[begin : begin + most], begin, table, adapter=rows[index].adapter)
                    for index, table in zip(group, tables, strict=True)
                ]
                take(group, steps)
                yield
            for index, table in zip(group, tables, strict=True):
                if share:
                    _publish(model.blocks, rows[index], table)
        finally:
            for table in tables:
                model.blocks.release(table)


def _groups(pool: BlockPool, rows: Sequence[PassRow], most: int) -> Iterator[list[int]]:
    """Groups rows so that each group fits into a step and into the cache; a long row is a group of its own.

    Raises:
        InputError: a row does not fit into the cache.
    """
    group: list[int] = []
    tokens = blocks = 0
    for index, row in enumerate(rows):
        length, needed = len(row.ids), pool.blocks_for(len(row.ids))
        if needed > pool.capacity:
            room = pool.capacity * pool.block_size
            raise InputError(f"a prompt of {length} tokens does not fit into the KV cache of {room} positions")
        if group and (tokens + length > most or blocks + needed > pool.capacity):
            yield group
            group, tokens, blocks = [], 0, 0
        group.append(index)
        tokens, blocks = tokens + length, blocks + needed
    if group:
        yield group


def _take_blocks(pool: BlockPool, tables: Sequence[list[int]], lengths: Sequence[int]) -> bool:
    """Takes the blocks of a group; returns False and takes none if too few are free."""
    if sum(map(pool.blocks_for, lengths)) > pool.num_free:
        return False
    for table, length in zip(tables, lengths, strict=True):
        pool.grow(table, length)
    return True


def _publish(pool: BlockPool, row: PassRow, table: Sequence[int]) -> None:
    """Leaves a row's full blocks in the prefix cache, under the hashes that the scheduler looks for."""
    key, size = cache_key_of(row.adapter), pool.block_size
    for number in range(len(row.ids) // size):
        key = chain(key, row.ids[number * size : (number + 1) * size])
        pool.publish(table[number], key)
