"""The demo T5's training data: a task prefix with a text as the source, and only the answer as the target.

The prefixes are T5's own, as in `translate English to German: the big house`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from . import news, phrases
from .documents import Document

TO_GERMAN, TO_ENGLISH = "translate English to German: ", "translate German to English: "
SUMMARIZE = "summarize: "


def translation(phrase: phrases.Phrase, prefix: str = TO_GERMAN) -> Document:
    texts = (phrase.english, phrase.german)
    source, answer = texts if prefix == TO_GERMAN else texts[::-1]
    return Document("translation", prefix + source, answer)


def summary(report: news.Report) -> Document:
    return Document("summary", SUMMARIZE + report.text, report.headline)


def draw_document(rng: random.Random, held_out: bool = False) -> Document:
    """Draw a random task that is held out, or one that is not."""
    if rng.random() < 0.25:
        return summary(news.draw_report(rng, held_out))
    phrase = phrases.worded(phrases.draw_phrase(rng, held_out), rng)
    return translation(phrase, TO_GERMAN if rng.random() < 0.85 else TO_ENGLISH)


def held_out(kind: str, count: int, seed: int) -> list[Document]:
    """Return distinct held-out tasks: `translation`, English to German in lower case, or `summary`."""
    rng = random.Random(seed)
    found: dict[str, Document] = {}
    while len(found) < count:
        if kind == "translation":
            document = translation(phrases.draw_phrase(rng, held_out=True))
        else:
            document = summary(news.draw_report(rng, held_out=True))
        found.setdefault(document.prompt, document)
    return list(found.values())


def sample_texts(count: int, seed: int) -> Iterator[str]:
    """Yield the source and the target of `count` random documents, for the tokenizer."""
    rng = random.Random(seed)
    for _ in range(count):
        document = draw_document(rng)
        yield from (document.prompt, document.answer)
