"""Held-out questions, greedy answers to them, and their accuracy.

Every question contains a combination that the hold-out rule keeps out of training; an answer is right only if
it matches completely, up to the end-of-sequence token.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator

import torch

from . import chats, phrases, stories, sums
from .documents import CHAT_TOKENS, END, Document
from .network import Llama
from .tokenizer import EOS, Encoder


def held_out_sums() -> list[Document]:
    return [sums.completion(*problem) for problem in sums.held_out_problems()]


def held_out_translations(count: int, seed: int) -> list[Document]:
    """Return distinct held-out phrases, English to German, in lower case."""
    rng = random.Random(seed)
    found: dict[str, Document] = {}
    while len(found) < count:
        document = phrases.completion(phrases.draw_phrase(rng, held_out=True))
        found.setdefault(document.prompt, document)
    return list(found.values())


def held_out_chats(count: int, seed: int) -> list[Document]:
    rng = random.Random(seed)
    return [chats.as_document([chats.draw_exchange(rng, held_out=True)]) for _ in range(count)]


def held_out_lines(characters: int, seed: int) -> Iterator[str]:
    """Yield lines of text never used in training, one document each: stories, held-out sums and translations."""
    rng = random.Random(seed)
    makers = (stories.draw_document, *2 * [lambda r: sums.draw_document(r, True)])
    makers += tuple(2 * [lambda r: phrases.draw_document(r, True)])
    while characters > 0:
        line = rng.choice(makers)(rng).text
        characters -= len(line) + 1
        yield line


@torch.no_grad()
def greedy(model: Llama, encoder: Encoder, prompts: list[str], limit: int = 48) -> list[str]:
    """Return the answer to each prompt, without its end token; prompts of equal length run together."""
    ends = {EOS, encoder.sp.piece_to_id(END)}
    groups: dict[int, list[int]] = defaultdict(list)
    encoded = [encoder.encode(prompt) for prompt in prompts]
    for index, ids in enumerate(encoded):
        groups[len(ids)].append(index)
    answers = [""] * len(prompts)
    for length, members in groups.items():
        tokens = torch.tensor([encoded[index] for index in members])
        while tokens.shape[1] < length + limit and not _all_ended(tokens[:, length:], ends):
            tokens = torch.cat((tokens, model(tokens)[:, -1:].argmax(-1)), 1)
        for index, ids in zip(members, tokens.tolist(), strict=True):
            answers[index] = _answer_text(encoder, ids, length, ends)
    return answers


def _all_ended(generated: torch.Tensor, ends: Iterable[int]) -> bool:
    ended = torch.zeros(generated.shape[0], dtype=torch.bool)
    for end in ends:
        ended |= (generated == end).any(1)
    return bool(ended.all())


def _answer_text(encoder: Encoder, ids: list[int], length: int, ends: set[int]) -> str:
    stop = next((i for i in range(length, len(ids)) if ids[i] in ends), len(ids))
    return "".join(encoder.sp.id_to_piece(ids[length:stop])).replace("▁", " ")


def accuracy(model: Llama, encoder: Encoder, documents: list[Document]) -> tuple[float, list[str]]:
    """Return the share of right answers, and a line for each wrong one."""
    answers = greedy(model, encoder, [document.prompt for document in documents])
    wrong = [
        f"{document.prompt} expected{document.answer!r} got{answer!r}"
        for document, answer in zip(documents, answers, strict=True)
        if answer.strip() != document.answer.removesuffix(CHAT_TOKENS[-1]).strip()
    ]
    return 1 - len(wrong) / len(documents), wrong
