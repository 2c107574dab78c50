"""Greedy answers of the trained T5, and their accuracy: an answer must match completely, up to its end token."""

from __future__ import annotations

import torch

from .documents import Document
from .encoder_decoder import T5
from .pairs import EOS, PAD, PairEncoder, padded


@torch.no_grad()
def greedy(model: T5, encoder: PairEncoder, prompts: list[str], limit: int = 32) -> list[str]:
    """Return the answer to each prompt; all prompts run together."""
    memory, mask = model.encode(padded([encoder.encode(prompt) for prompt in prompts]), PAD)
    tokens = torch.full((len(prompts), 1), PAD)
    while tokens.shape[1] <= limit and not bool((tokens == EOS).any(1).all()):
        tokens = torch.cat((tokens, model.decode(tokens, memory, mask)[:, -1:].argmax(-1)), 1)
    return [encoder.decode(row[1:]) for row in tokens.tolist()]


def accuracy(model: T5, encoder: PairEncoder, documents: list[Document]) -> tuple[float, list[str]]:
    """Return the share of right answers, and a line for each wrong one."""
    answers = greedy(model, encoder, [document.prompt for document in documents])
    wrong = [
        f"{document.prompt} expected {document.answer!r} got {answer!r}"
        for document, answer in zip(documents, answers, strict=True)
        if answer != document.answer
    ]
    return 1 - len(wrong) / len(documents), wrong
