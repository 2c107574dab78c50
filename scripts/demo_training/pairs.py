"""The demo T5's tokenizer, and its tasks as batches of source and target tokens.

The tokenizer is like T5's: a sentencepiece unigram model with pad 0, end 1, unknown 2, and no beginning-of-sequence
token. Sources and targets end with the end token; decoding starts from the pad token.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import sentencepiece
import torch
from torch import Tensor

from .documents import Document
from .instructions import draw_document

PAD, EOS, UNK = range(3)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> bytes:
    """Train a sentencepiece model of at most `vocab_size` pieces; return it serialized."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="unigram",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        character_coverage=1.0,
        pad_id=PAD,
        eos_id=EOS,
        unk_id=UNK,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


class PairEncoder:
    """Encodes texts to ids that end with the end token, and decodes them."""

    def __init__(self, model: bytes):
        self.sp = sentencepiece.SentencePieceProcessor(model_proto=model)

    def encode(self, text: str) -> list[int]:
        return [*self.sp.encode(text), EOS]

    def decode(self, ids: list[int]) -> str:
        """Return the text before the first end token."""
        return self.sp.decode(ids[: ids.index(EOS)] if EOS in ids else ids)


@dataclass(frozen=True)
class PairBatch:
    """Sources [B, S] and targets [B, T], padded on the right with PAD."""

    sources: Tensor
    targets: Tensor


def padded(rows: list[list[int]]) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])


def batches(encoder: PairEncoder, tokens: int, seed: int, pool: int = 4096) -> Iterator[PairBatch]:
    """Yield endless batches of about `tokens` tokens; sort `pool` pairs at a time by length, to reduce padding."""
    rng = random.Random(seed)
    while True:
        drawn = [_pair(encoder, draw_document(rng)) for _ in range(pool)]
        drawn.sort(key=lambda pair: (len(pair[0]), len(pair[1])))
        groups: list[list[tuple[list[int], list[int]]]] = [[]]
        for pair in drawn:
            if groups[-1] and (len(groups[-1]) + 1) * (len(pair[0]) + len(pair[1])) > tokens:
                groups.append([])
            groups[-1].append(pair)
        rng.shuffle(groups)
        for group in groups:
            yield PairBatch(padded([source for source, _ in group]), padded([target for _, target in group]))


def _pair(encoder: PairEncoder, document: Document) -> tuple[list[int], list[int]]:
    return encoder.encode(document.prompt), encoder.encode(document.answer)
