"""The work that every program is given, and what is counted of it. Knows no program.

Prompts are random ids, the same for every program, and none of them twice in a process, so that no cache of common
beginnings can help.
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
# Ids of each answer that are kept, to see whether programs agree.
COMPARED = 32


@dataclass(frozen=True)
class Lengths:
    """Tokens of prompts and answers, and rows of batches."""

    prompt: int = 128
    answer: int = 128
    prefill: int = 512
    batch_answer: int = 32
    batches: tuple[int, ...] = (4, 16)

    @property
    def positions(self) -> int:
        """Positions of KV cache that the largest run needs."""
        single = self.prompt + self.answer
        return max(single, self.prefill + 1, *(rows * (self.prompt + self.batch_answer) for rows in self.batches))


@dataclass(frozen=True)
class Run:
    """What came of one run.

    Args:
        first: seconds until every row had its first token.
        rate: tokens/s of all rows together after that, while all of them ran; 0 where there were none.
        ids: the new ids of each row.
    """

    first: float
    rate: float
    ids: list[list[int]]

    @classmethod
    def of_steps(cls, started: float, moments: Sequence[float], ids: list[list[int]]) -> Run:
        """Of rows that step together: `moments` has the time of each step, which gave every row one token."""
        seconds = moments[-1] - moments[0]
        return cls(moments[0] - started, len(ids) * (len(moments) - 1) / seconds if seconds else 0.0, ids)


class Program(Protocol):
    """A loaded model in a program that is measured."""

    def generate(self, rows: list[list[int]], new: int) -> Run:
        """Continues rows of equal length together, greedily, by `new` tokens each, whatever they are."""
        ...


def prompts(vocabulary: int, rows: int, length: int, name: str) -> list[list[int]]:
    """Rows of ids that depend on the arguments alone."""
    numbers = random.Random(f"{name} {rows} {length}")
    return [[numbers.randrange(FIRST_ID, vocabulary) for _ in range(length)] for _ in range(rows)]


def kv_bytes(config: dict[str, Any], positions: int, item_size: int) -> int:
    """Bytes of keys and values of a config.json's model."""
    head = config["hidden_size"] // config["num_attention_heads"]
    return 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head * positions * item_size


def first_token(program: Program, vocabulary: int) -> float:
    """Seconds from the start of this process to a first token."""
    program.generate(prompts(vocabulary, 1, WARM_UP, "first"), 1)
    return process.age()


def measure(program: Program, vocabulary: int, lengths: Lengths) -> dict[str, object]:
    """Figures of speed and memory; the first of a process, as they begin with `first_token`."""
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
