"""Trains the demo model's sentencepiece tokenizer, and encodes documents as token ids.

A BPE model like Llama 2's: dummy prefix, single digits, byte fallback. Each chat token is one piece.
"""

from __future__ import annotations

import io
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass

import sentencepiece

from .documents import CHAT_TOKENS, Document

UNK, BOS, EOS, PAD = range(4)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> bytes:
    """Train a sentencepiece model of at most `vocab_size` pieces; return it serialized."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        character_coverage=1.0,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        max_sentence_length=65536,
        user_defined_symbols=list(CHAT_TOKENS),
        unk_id=UNK,
        bos_id=BOS,
        eos_id=EOS,
        pad_id=PAD,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


@dataclass(frozen=True)
class Sample:
    """A document's token ids, and the loss weight of each."""

    ids: list[int]
    weights: list[float]


class Encoder:
    """Encodes documents to token ids, from BOS to EOS.

    Chats are encoded like transformers does: no space before or after a chat token. Other libraries put a
    space piece before the first (`space_first`) or after each (`space_after`); some chats include those.
    """

    def __init__(self, model: bytes, prompt_weight: float):
        self.sp = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.prompt_weight = prompt_weight
        self._marks = re.compile("(" + "|".join(map(re.escape, CHAT_TOKENS)) + ")")

    def encode(self, text: str, space_first: bool = False, space_after: bool = False) -> list[int]:
        """Return BOS and the ids of `text`."""
        ids = [BOS]
        for index, part in enumerate(self._marks.split(text)):
            if part in CHAT_TOKENS:
                ids.append(self.sp.piece_to_id(part))
            elif index == 0 and (part or space_first):
                ids += self.sp.encode(part) if part else [self.sp.piece_to_id("▁")]
            elif part:
                ids += self.sp.encode(part) if space_after else self._encode_inside(part)
        return ids

    def _encode_inside(self, text: str) -> list[int]:
        """Return the ids of `text` without a leading space, for text after a chat token."""
        return self.sp.encode(CHAT_TOKENS[0] + text)[2:]

    def sample(self, document: Document, rng: random.Random) -> Sample:
        """Encode a document for training. Raises ValueError if its answer does not start at a token boundary."""
        style = rng.random() if document.kind == "chat" else 1.0
        spaces = {"space_first": style < 0.15, "space_after": style < 0.3 and style >= 0.15}
        prompt = self.encode(document.prompt, **spaces)
        full = self.encode(document.text, **spaces)
        if full[: len(prompt)] != prompt:
            raise ValueError(f"the prompt {document.prompt!r} is tokenized differently alone")
        answer_length = len(full) + 1 - len(prompt)
        return Sample([*full, EOS], [self.prompt_weight] * len(prompt) + [1.0] * answer_length)
