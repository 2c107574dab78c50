"""Renders an answer as a line of output: JSON, MindFormers' result, or text.

Knows output formats; knows nothing about files or models.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace

from inference.generation.record import Completion, completion_of
from inference.generation.text import Answer, EncodedPrompt


@dataclass(frozen=True)
class Result:
    """The outcome of a row.

    Args:
        source: the prompt that was answered; None if the row failed.
    """

    completion: Completion
    source: EncodedPrompt | None = None

    @property
    def texts(self) -> list[str]:
        """The text of every sample."""
        return [sample.text or "" for sample in self.completion.samples or (self.completion,)]

    @classmethod
    def of(cls, outcome: Answer | Completion, model: str) -> Result:
        """Makes the result of an answer or of a failed row."""
        if isinstance(outcome, Completion):
            return cls(replace(outcome, model=model))
        return cls(completion_of(outcome, model), outcome.source)


def render_json(result: Result, echo: bool) -> str:
    """The record as one line of JSON."""
    made = result.completion.as_dict(echo)
    line = json.dumps(made, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:  # JSON can escape a lone surrogate, UTF-8 cannot encode it
        line = json.dumps(made)
    return line


def render_mindformers(result: Result, echo: bool) -> str:
    """MindFormers' result: a list with the prompt and its answer as one text; an empty list for a failed row."""
    texts = [] if result.source is None else [result.source.full_text(text) for text in result.texts]
    return json.dumps({"text_generation_text": texts}, ensure_ascii=False)


def render_text(result: Result, echo: bool) -> str | None:
    """The answer, preceded by its prompt if `echo`; None for a failed row."""
    if result.source is None:
        return None
    heading = result.source.heading if echo else ""
    return "\n".join(heading + text for text in result.texts)


RENDERERS: dict[str, Callable[[Result, bool], str | None]] = {
    "json": render_json,
    "mindformers": render_mindformers,
    "text": render_text,
}
