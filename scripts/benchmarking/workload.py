"""The work given to every program, and the figures measured. Knows nothing about the programs.

Prompts are random ids, the same for every program, and never repeat within a process, so that a prefix cache cannot
help.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from benchmarking import process

# The first ids of a vocabulary are special tokens.
FIRST_ID = 3
WARM_UP = 16
# Ids kept of each answer, to compare programs.
COMPARED = 32


@dataclass(frozen=True)
class Lengths:
    """Lengths of prompts and answers in tokens, and of batches in rows."""

    prompt: int = 128
    answer: int = 128
    prefill: int = 512
    batch_answer: int = 32
    batches: tuple[int, ...] = (4, 16)

    @property
    def positions(self) -> int:
        """KV cache positions that the largest run needs."""
        single = self.prompt + self.answer
        return max(single, self.prefill + 1, *(rows * (self.prompt + self.batch_answer) for rows in self.batches))


@dataclass(frozen=True)
class Run:
    """The result of one run.

    Args:
        first: seconds until every row had its first token.
        rate: tokens/s of all rows together after that, while all were running; 0 if there were no further tokens.
        ids: the new ids of each row.
    """

    first: float
    rate: float
    ids: list[list[int]]

    @classmethod
    def of_steps(cls, started: float, moments: Sequence[float], ids: list[list[int]]) -> Run:
        """Make the result of rows that step together: `moments` has the time of each step, one token per row."""
        seconds = moments[-1] - moments[0]
        return cls(moments[0] - started, len(ids) * (len(moments) - 1) / seconds if seconds else 0.0, ids)


class Program(Protocol):
    """A loaded model in a measured program."""

    def generate(self, rows: list[list[int]], new: int) -> Run:
        """Extend rows of equal length together, greedily, by `new` tokens each, ignoring end-of-sequence."""
        ...


def prompts(vocabulary: int, rows: int, length: int, name: str) -> list[list[int]]:
    """Return rows of ids that depend only on the arguments."""
    numbers = random.Random(f"{name} {rows} {length}")
    return [[numbers.randrange(FIRST_ID, vocabulary) for _ in range(length)] for _ in range(rows)]


def kv_bytes(config: dict[str, Any], positions: int, item_size: int) -> int:
    """Return the bytes of keys and values for the model of a config.json."""
    head = config["hidden_size"] // config["num_attention_heads"]
    return 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head * positions * item_size


def first_token(program: Program, vocabulary: int) -> float:
    """Return the seconds from the start of this process to a first token."""
    program.generate(prompts(vocabulary, 1, WARM_UP, "first"), 1)
    return process.age()


def measure(program: Program, vocabulary: int, lengths: Lengths) -> dict[str, object]:
    """Measure speed and memory. Call it first in a process, because it begins with `first_token`."""
    figures: dict[str, object] = {"first_token_s": first_token(program, vocabulary)}
    program.generate(prompts(vocabulary, 1, lengths.prompt, "warm-up"), 4)
    prefill = [
        lengths.prefill / program.generate(prompts(vocabulary, 1, lengths.prefill, f"prefill {number}"), 1).first
        for number in range(2)
    ]
    figures["prefill_tok_s"] = statistics.median(prefill)
    run = program.generate(prompts(vocabulary, 1, lengths.prompt, "single"), lengths.answer)
    figures["ttft_ms"], figures["decode_1_tok_s"] = run.first * 1000, run.rate
    answers = list(run.ids)
    for batch in lengths.batches:
        run = program.generate(prompts(vocabulary, batch, lengths.prompt, "batch"), lengths.batch_answer)
        figures[f"decode_{batch}_tok_s"] = run.rate
        answers += run.ids
    figures["out_ids"] = [ids[:COMPARED] for ids in answers]
    figures["peak_mb"] = process.peak_memory() / 1e6
    return figures
