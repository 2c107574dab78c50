"""One step of a model: a flat batch of tokens with no padding, as plain numpy arrays.

Prefill, chunked prefill, decode and any mix of them use the same step. Never imports mindspore.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class SequenceStep:
    """The part of one sequence in a step.

    Args:
        tokens: ids to process in this step.
        start: position of the first of them in the sequence.
        block_table: ids of the cache blocks that hold the sequence, enough for `start + len(tokens)` positions.
        source: the blocks and the length of the source that a decoder attends to; None in models without an encoder.
        adapter: number of the sequence's adapter, from 1; 0 for none.
        num_logits: number of last tokens whose logits are compared: one, or more if the last tokens are speculative.
    """

    tokens: Sequence[int]
    start: int
    block_table: Sequence[int]
    source: tuple[Sequence[int], int] | None = None
    adapter: int = 0
    num_logits: int = 1


@dataclass(frozen=True)
class StepBatch:
    """T tokens of B sequences; Q is the length of the longest query. All arrays are int32.

    tokens, positions, slots [T]; block_tables [B, blocks] (padded with block 0, which the mask hides);
    query_starts [B + 1]: sequence b's tokens are [query_starts[b], query_starts[b + 1]);
    query_index [B, Q]: index of each sequence's tokens in the flat batch (padded with 0);
    token_index [T]: index of each token in the flattened [B, Q];
    logits_index [R]: the tokens whose logits are compared to find the next token;
    logit_rows [S]: the rows among these R whose full logits are returned;
    cross_tables [B, blocks], cross_lengths [B]: the sources that a decoder attends to; None in other models;
    adapters [T]: each token's adapter number, from 1, 0 for none; None if no token has one.
    """

    tokens: np.ndarray
    positions: np.ndarray
    slots: np.ndarray
    block_tables: np.ndarray
    query_starts: np.ndarray
    query_index: np.ndarray
    token_index: np.ndarray
    logits_index: np.ndarray
    logit_rows: np.ndarray
    cross_tables: np.ndarray | None = None
    cross_lengths: np.ndarray | None = None
    adapters: np.ndarray | None = None

    @classmethod
    def build(
        cls,
        sequences: Sequence[SequenceStep],
        block_size: int,
        all_logits: bool = False,
        logit_rows: Sequence[int] | None = None,
    ) -> StepBatch:
        """Concatenates sequences into one flat batch.

        Args:
            all_logits: compare the logits of all tokens, instead of those of each sequence's last tokens.
            logit_rows: the rows among these whose full logits are returned; None for all.
        """
        lengths = np.array([len(sequence.tokens) for sequence in sequences])
        starts = np.cumsum(lengths) - lengths
        total, longest = int(lengths.sum()), int(lengths.max())
        positions = np.concatenate([np.arange(s.start, s.start + len(s.tokens)) for s in sequences])
        blocks = [-(-(s.start + len(s.tokens)) // block_size) for s in sequences]
        tables = _tables([s.block_table[:count] for s, count in zip(sequences, blocks, strict=True)])
        row_of_token = np.repeat(np.arange(len(sequences)), lengths)
        within = np.arange(total) - np.repeat(starts, lengths)
        slots = tables[row_of_token, positions // block_size] * block_size + positions % block_size
        query_index = np.zeros((len(sequences), longest), np.int32)
        query_index[row_of_token, within] = np.arange(total)
        wanted = np.arange(total) if all_logits else _last_tokens(starts + lengths, sequences)
        arrays = (
            np.concatenate([np.asarray(s.tokens) for s in sequences]),
            positions,
            slots,
            tables,
            np.append(starts, total),
            query_index,
            row_of_token * longest + within,
            wanted,
            np.arange(len(wanted)) if logit_rows is None else np.asarray(logit_rows),
        )
        given = [s.source for s in sequences if s.source is not None]
        used = [table[: -(-length // block_size)] for table, length in given]
        sources = (_tables(used), np.array([length for _, length in given])) if given else ()
        batch = cls(*(np.ascontiguousarray(array, np.int32) for array in (*arrays, *sources)))
        numbers = [sequence.adapter for sequence in sequences]
        return replace(batch, adapters=np.repeat(numbers, lengths).astype(np.int32)) if any(numbers) else batch

    def fields(self) -> tuple[np.ndarray, ...]:
        """Returns the fields in their order, for sending to another rank; None becomes an empty array."""
        values = (getattr(self, field.name) for field in dataclasses.fields(self))
        return tuple(np.empty(0, np.int32) if value is None else value for value in values)

    @classmethod
    def of_fields(cls, arrays: Sequence[np.ndarray]) -> StepBatch:
        """Rebuilds the batch from the arrays that `fields` returned."""
        pairs = zip(dataclasses.fields(cls), arrays, strict=True)
        # Fields without a default are always passed; the last of them may be empty.
        return cls(
            **{field.name: array for field, array in pairs if array.size or field.default is dataclasses.MISSING}
        )

    def arrays(self) -> tuple[np.ndarray, ...]:
        """Returns the network's inputs in order; `logit_rows` gets a leading 0, because it may be empty."""
        sources = () if self.cross_tables is None else (self.cross_tables, self.cross_lengths)
        return (
            self.tokens,
            self.positions,
            self.slots,
            self.block_tables,
            self.query_starts,
            self.query_index,
            self.token_index,
            self.logits_index,
            np.concatenate([[0], self.logit_rows]).astype(np.int32),
            *sources,
        )

    def adapted_arrays(self) -> tuple[np.ndarray, ...]:
        """Returns the inputs, in order, of a network with adapters."""
        return (*self.arrays(), np.zeros_like(self.tokens) if self.adapters is None else self.adapters)


def _last_tokens(ends: np.ndarray, sequences: Sequence[SequenceStep]) -> np.ndarray:
    """Returns the indices in the flat batch of the tokens whose logits are compared [R].

    `ends` [B] holds the end of each sequence in the flat batch.
    """
    counts = np.array([sequence.num_logits for sequence in sequences])
    before = np.cumsum(counts) - counts
    return np.arange(counts.sum()) + np.repeat(ends - counts - before, counts)


def _tables(tables: Sequence[Sequence[int]]) -> np.ndarray:
    """Returns block tables as rows [B, blocks], padded with block 0."""
    rows = np.zeros((len(tables), max(map(len, tables))), np.int32)
    for row, table in zip(rows, tables, strict=True):
        row[: len(table)] = table
    return rows


@dataclass(frozen=True)
class StepResult:
    """The results of a step for the R tokens of its `logits_index`.

    best [R]: the token with the largest logit, the first of equals; -1 if a logit is NaN or +inf, or all are -inf.
        A token with a logit of -inf is never chosen.
    logits [S, vocabulary]: float32, for the rows in `logit_rows`.
    value [R]: float32, the logit of each `best`; NaN or +inf if the row contains one.
    """

    best: np.ndarray
    logits: np.ndarray
    value: np.ndarray

    @classmethod
    def of_logits(cls, logits: np.ndarray, batch: StepBatch, first_token: int = 0) -> StepResult:
        """Builds the result from logits [R, vocabulary], or those of a part of the vocabulary from `first_token` on."""
        # A NaN makes the row's maximum NaN. A token with -inf cannot be chosen; the row fails only if all are -inf.
        value = logits.max(axis=1)
        best = np.where(np.isfinite(value), logits.argmax(axis=1) + first_token, -1)
        return cls(best, logits[batch.logit_rows], value)

    @classmethod
    def of_parts(cls, parts: Sequence[StepResult]) -> StepResult:
        """Merges the results of neighboring parts of the vocabulary, given in order."""
        best = np.stack([part.best for part in parts])
        values = np.stack([part.value for part in parts])
        rows = np.arange(best.shape[1])
        # Take the first of equals, as within a part. A part without any token that can be chosen is not a failure.
        winner = values.argmax(axis=0)
        failed = ((best < 0) & ~np.isneginf(values)).any(axis=0)
        chosen = np.where(failed, -1, best[winner, rows])
        return cls(chosen, np.concatenate([part.logits for part in parts], axis=1), values[winner, rows])

    def arrays(self) -> tuple[np.ndarray, ...]:
        """Returns the fields: best, logits, value."""
        return self.best, self.logits, self.value
