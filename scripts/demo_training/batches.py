"""An endless stream of documents, packed into rows of equal length.

In most rows each document sees only itself and starts at position 0, like a prompt; in the others the
documents form one continuous text, so that the model sees every position up to the row's length.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from . import chats, phrases, stories, sums
from .documents import Document
from .tokenizer import PAD, Encoder, Sample

# Documents per hundred; stories and chats are long, so their share of the tokens is larger.
KINDS = {"story": 4, "sum": 50, "translation": 27, "chat": 19}
JOINED_ROWS = 0.2


@dataclass(frozen=True)
class Batch:
    """Rows of tokens [B, T] with their targets, the weight of each prediction, and the attention mask."""

    tokens: Tensor
    targets: Tensor
    weights: Tensor
    positions: Tensor
    mask: Tensor  # [B, 1, T, T], True where attention is allowed


def draw_document(rng: random.Random) -> Document:
    kind = rng.choices(tuple(KINDS), tuple(KINDS.values()))[0]
    makers = {
        "story": stories.draw_document, "sum": sums.draw_document,
        "translation": phrases.draw_document, "chat": chats.draw_document,
    }  # fmt: skip
    return makers[kind](rng)


class Packer:
    """Fills rows of `length` tokens with whole documents."""

    def __init__(self, encoder: Encoder, length: int, seed: int):
        self.encoder, self.length = encoder, length
        self.rng = random.Random(seed)
        self._waiting: list[Sample] = []

    def _fitting(self, room: int) -> Sample | None:
        """Return a waiting or new document of at most `room` tokens; those that do not fit keep waiting."""
        for index, sample in enumerate(self._waiting):
            if len(sample.ids) <= room:
                return self._waiting.pop(index)
        for _ in range(8):
            sample = self.encoder.sample(draw_document(self.rng), self.rng)
            if len(sample.ids) <= room:
                return sample
            if len(sample.ids) <= self.length and len(self._waiting) < 64:
                self._waiting.append(sample)
        return None

    def _row(self) -> list[Sample]:
        row: list[Sample] = []
        room = self.length + 1
        while room > 4 and (sample := self._fitting(room)):
            row.append(sample)
            room -= len(sample.ids)
        return row

    def batch(self, rows: int) -> Batch:
        """Return `rows` rows; the token after a document's EOS is BOS, a prediction with little weight."""
        shape = (rows, self.length + 1)
        tokens, weights = torch.full(shape, PAD), torch.zeros(shape)
        positions, owner = torch.zeros(shape, dtype=torch.long), torch.full(shape, -1)
        for index in range(rows):
            joined = self.rng.random() < JOINED_ROWS
            start = 0
            for number, sample in enumerate(self._row()):
                end = start + len(sample.ids)
                tokens[index, start:end] = torch.tensor(sample.ids)
                weights[index, start:end] = torch.tensor(sample.weights)
                first = start if joined else 0
                positions[index, start:end] = torch.arange(first, first + end - start)
                owner[index, start:end] = 0 if joined else number
                start = end
        owner = owner[:, :-1]
        same = owner[:, :, None] == owner[:, None, :]
        return Batch(
            tokens[:, :-1],
            tokens[:, 1:],
            weights[:, 1:],
            positions[:, :-1],
            (same & _causal(self.length))[:, None],
        )


def _causal(length: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).tril()


def sample_texts(count: int, seed: int) -> Iterator[str]:
    """Yield the texts of `count` random documents, for the tokenizer."""
    rng = random.Random(seed)
    return (draw_document(rng).text for _ in range(count))
