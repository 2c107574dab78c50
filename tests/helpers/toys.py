"""A toy model and tokenizer: they run in milliseconds, and wrong bookkeeping gives wrong tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from inference.config import GenerationConfig
from inference.engine.request import Request
from inference.models.block_pool import BlockPool
from inference.models.step import StepBatch, StepResult
from inference.tokenizer import Tokenizer

END = 256


def logits_of(past: Sequence[int], vocabulary: int) -> np.ndarray:
    """Return logits float32 [vocabulary] after the tokens `past`, which alone determine them."""
    digest = hashlib.blake2b(np.asarray(past, np.int64).tobytes(), digest_size=8).digest()
    return (3 * np.random.default_rng(int.from_bytes(digest, "little")).standard_normal(vocabulary)).astype(np.float32)


class ToyModel:
    """Keeps tokens in a cache of slots, as a network keeps keys and values, and reads its past only from there.

    Every entry remembers its position, so that a slot that another sequence wrote, or a table with a wrong block,
    is detected at once.

    Args:
        broken_after: returns NaN logits once a sequence has this many tokens.
        poison: a token after which a row's logits are NaN.
        crash: a token that makes a step fail.
    """

    def __init__(
        self,
        vocabulary: int = 40,
        num_blocks: int = 64,
        block_size: int = 4,
        context_length: int = 64,
        broken_after: int | None = None,
        poison: int | None = None,
        crash: int | None = None,
    ):
        self.vocabulary, self.num_blocks, self.block_size = vocabulary, num_blocks, block_size
        self.context_length = context_length
        self.blocks = BlockPool(num_blocks, block_size)
        self.broken_after, self.poison, self.crash = broken_after, poison, crash
        self.is_broken = False
        self.tokens = np.full(num_blocks * block_size, -1)
        self.positions = np.full(num_blocks * block_size, -1)
        self.batches: list[StepBatch] = []
        self.copied = 0

    def step(self, batch: StepBatch) -> StepResult:
        self.batches.append(batch)
        if self.crash is not None and self.crash in batch.tokens:
            raise RuntimeError("the graph cannot be run")
        assert len(set(batch.slots.tolist())) == len(batch.slots), "two tokens in one slot"
        assert batch.slots.min() >= self.block_size, "a token in the null block"
        assert batch.tokens.min() >= 0 and batch.tokens.max() < self.vocabulary
        owners = {slot // self.block_size: row for row, slot in zip(self._rows(batch), batch.slots, strict=True)}
        for row, table in enumerate(batch.block_tables):
            assert all(owners.get(block, row) == row for block in table[table > 0]), "a block of another row is written"
        assert all(block not in self.blocks._hash_of for block in owners), "a published block is written"
        self.tokens[batch.slots], self.positions[batch.slots] = batch.tokens, batch.positions
        logits = np.stack([self._logits(batch, int(token)) for token in batch.logits_index])
        return StepResult.of_logits(logits, batch)

    def warm_up(self) -> None:
        if self.is_broken:
            raise RuntimeError("the device is gone")

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        self.copied += len(pairs)
        for of in (self.tokens, self.positions):
            blocks = of.reshape(self.num_blocks, self.block_size)
            for source, target in pairs:
                blocks[target] = blocks[source]

    @staticmethod
    def _rows(batch: StepBatch) -> np.ndarray:
        return batch.token_index // batch.query_index.shape[1]

    def _logits(self, batch: StepBatch, token: int) -> np.ndarray:
        row = self._rows(batch)[token]
        length = int(batch.positions[token]) + 1
        places = np.arange(length)
        slots = batch.block_tables[row, places // self.block_size] * self.block_size + places % self.block_size
        assert (self.positions[slots] == places).all(), "the cache holds another position here"
        is_poisoned = self.poison is not None and self.poison in self.tokens[slots]
        if is_poisoned or (self.broken_after is not None and length >= self.broken_after):
            return np.full(self.vocabulary, np.nan, np.float32)
        return logits_of(self.tokens[slots], self.vocabulary)


class ScriptModel(ToyModel):
    """Generates a fixed text for any prompt: after a prompt of n tokens, `script[position - n]`, then the end token."""

    def __init__(self, script: Sequence[int], prompt_tokens: int, **sizes: int):
        super().__init__(**{"vocabulary": 258, "context_length": 512, "num_blocks": 513, **sizes})
        self.script, self.prompt_tokens = [*script, END], prompt_tokens

    def _logits(self, batch: StepBatch, token: int) -> np.ndarray:
        logits = super()._logits(batch, token) - 100
        spoken = int(batch.positions[token]) + 1 - self.prompt_tokens
        if spoken >= 0:
            logits[self.script[min(spoken, len(self.script) - 1)]] = 100
        return logits


class ByteTokenizer(Tokenizer):
    """One token per byte, and 256 for the end."""

    def encode_text(self, text: str, allow_special: bool = True) -> list[int]:
        return list(text.encode())

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < 256 else b""

    def id_to_token(self, token_id: int) -> str | None:
        return "<end>" if token_id == END else chr(token_id) if token_id < 256 else None

    def token_to_id(self, token: str) -> int | None:
        return END if token == "<end>" else ord(token) if len(token) == 1 else None

    @property
    def vocab_size(self) -> int:
        return 257

    def special_ids(self) -> list[int]:
        return [END]


def make_request(prompt: Sequence[int], name: str = "0", context: int = 64, **settings: object) -> Request:
    """Make a request like the encoder."""
    generation = GenerationConfig(**settings)
    limit = generation.new_token_limit(len(prompt), context)
    return Request(name, list(prompt), generation, limit, generation.new_token_minimum(len(prompt)))
