"""The structure of a training document, independent of its generation and tokenization."""

from __future__ import annotations

from dataclasses import dataclass

USER, ASSISTANT, SYSTEM, END = "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"
CHAT_TOKENS = (USER, ASSISTANT, SYSTEM, END)


@dataclass(frozen=True)
class Document:
    """A prompt and its answer; the loss weights the answer fully and the prompt slightly.

    `kind` is story, sum, translation or chat. A chat contains its special tokens in both texts.
    """

    kind: str
    prompt: str
    answer: str

    @property
    def text(self) -> str:
        return self.prompt + self.answer


@dataclass(frozen=True)
class Exchange:
    """A question and its answer, before they are formatted as a completion or a chat."""

    question: str
    answer: str
