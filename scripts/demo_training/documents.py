"""The shape of one training document, apart from how it is made or tokenised."""

from __future__ import annotations

from dataclasses import dataclass

USER, ASSISTANT, SYSTEM, END = "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"
CHAT_TOKENS = (USER, ASSISTANT, SYSTEM, END)


@dataclass(frozen=True)
class Document:
    """A prompt and the answer that ends it; the loss counts the answer in full and the prompt a little.

    `kind` is story, sum, translation or chat. A chat has its special tokens written out in both texts.
    """

    kind: str
    prompt: str
    answer: str

    @property
    def text(self) -> str:
        return self.prompt + self.answer


@dataclass(frozen=True)
class Exchange:
    """One question and its answer, before it is worded as a completion or as a chat."""

    question: str
    answer: str
