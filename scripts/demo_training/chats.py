"""Conversations: sums, phrases, stories and a little small talk, as questions to an assistant.

`TEMPLATE` is the chat template that ships with the model; `render` writes the same text in Python.
"""

from __future__ import annotations

import random

from . import phrases, stories, sums
from .documents import ASSISTANT, END, SYSTEM, USER, Document, Exchange

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    '{{ raise_exception("a message\'s role is system, user or assistant") }}{% endif %}'
    "{{ '<|' + message['role'] + '|>' + message['content'] | trim + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

SMALL_TALK = {
    "Hello!": "Hello! How can I help you?",
    "Hello": "Hello! How can I help you?",
    "Hi!": "Hello! How can I help you?",
    "Good morning!": "Good morning! How can I help you?",
    "How are you?": "I am fine, thank you. How can I help you?",
    "Who are you?": "I am a small demo model. I can tell stories, do small sums and translate to German.",
    "What can you do?": "I can tell stories, do small sums and translate short phrases to German.",
    "What is your name?": "I have no name. I am a small demo model.",
    "Thank you!": "You are welcome!",
    "Thanks!": "You are welcome!",
    "Goodbye!": "Goodbye!",
}
SYSTEM_MESSAGES = ("You are a helpful assistant.", "You are a friendly assistant.", "Answer in one line.")


def render(messages: list[dict[str, str]]) -> str:
    """Render messages like `TEMPLATE`, without the beginning-of-sequence token."""
    markers = {"user": USER, "assistant": ASSISTANT, "system": SYSTEM}
    return "".join(f"{markers[message['role']]}{message['content'].strip()}{END}" for message in messages)


def as_document(exchanges: list[Exchange], system: str | None = None) -> Document:
    """Make a document of a conversation; its answer is the last one."""
    messages = [{"role": "system", "content": system}] if system else []
    for exchange in exchanges:
        messages.append({"role": "user", "content": exchange.question})
        messages.append({"role": "assistant", "content": exchange.answer})
    last = messages.pop()
    return Document("chat", render(messages) + ASSISTANT, last["content"] + END)


def draw_exchange(rng: random.Random, held_out: bool = False) -> Exchange:
    """Draw a random question and answer; held-out ones are only sums and phrases."""
    topics = ("sum", "phrase", "story", "talk")
    topic = rng.choices(topics, (45, 45, 0, 0) if held_out else (40, 40, 12, 8))[0]
    if topic == "sum":
        return sums.exchange(*sums.draw_problem(rng, held_out), rng)
    if topic == "phrase":
        return phrases.exchange(phrases.draw_phrase(rng, held_out), rng)
    if topic == "story":
        return stories.exchange(rng)
    return Exchange(*rng.choice(list(SMALL_TALK.items())))


def draw_document(rng: random.Random) -> Document:
    count = rng.choices((1, 2, 3), (6, 3, 1))[0]
    system = rng.choice(SYSTEM_MESSAGES) if rng.random() < 0.1 else None
    return as_document([draw_exchange(rng) for _ in range(count)], system)
