"""Rows and answers as messages between the replicas of a model: plain fields that JSON can hold.

Sends only what the other side lacks: rank 0 has the prompts, and every replica has the settings common to all rows.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from inference.config import GenerationConfig
from inference.engine.request import FinishReason, Request, TokenLogprob
from inference.generation.text import Answer, EncodedPrompt, TextEvent
from inference.inputs.prompts import Prompt

Fields = Mapping[str, Any]


def row_fields(source: EncodedPrompt) -> dict[str, Any]:
    """Returns the fields of a row that a replica needs to answer it."""
    return {
        "row": source.row,
        "sample": source.sample,
        "seed_row": source.seed_row,
        "id": source.prompt.custom_id,
        "ids": source.ids,
        "is_chat": source.is_chat,
        "settings": dict(source.prompt.settings),
        "adapter": source.adapter,
        "shown": sorted(source.shown),
    }


def row_of(fields: Fields, generation: GenerationConfig) -> EncodedPrompt:
    """Rebuilds a row from its fields, without its text.

    Args:
        generation: the settings common to all rows.
    """
    settings = fields["settings"]
    prompt = Prompt(fields["id"], "", token_ids=tuple(fields["ids"]), settings=settings)
    own = generation.updated(**settings) if settings else generation
    return EncodedPrompt(
        fields["row"],
        prompt,
        "",
        fields["ids"],
        own,
        fields["is_chat"],
        adapter=fields["adapter"],
        sample=fields["sample"],
        seed_row=fields["seed_row"],
        shown=frozenset(fields["shown"]),
    )


def key_of(fields: Fields) -> tuple[int, int]:
    """Returns the row and the sample that a message is about."""
    return fields["row"], fields["sample"]


def event_fields(key: tuple[int, int], tokens: list[int], text: str, request: Request) -> dict[str, Any]:
    """Returns the progress of a row since its last event, and its results once it is finished.

    Times are in seconds since the row reached the replica.
    """
    fields: dict[str, Any] = {
        "row": key[0],
        "sample": key[1],
        "tokens": tokens,
        "text": text,
        "ttft": request.timing.ttft,
    }
    if request.finish_reason is not None:
        fields |= {
            "reason": request.finish_reason.value,
            "total": request.timing.total,
            "seed": request.seed,
            "reused": request.num_reused,
            "put_back": request.times_put_back,
            "logprobs": [[item.token_id, item.logprob, item.top] for item in request.logprobs],
        }
    return fields


@dataclass(eq=False)
class RemoteRow:
    """A row that another replica answers, as rank 0 sees it."""

    answer: Answer

    @classmethod
    def begin(cls, source: EncodedPrompt, context_length: int) -> RemoteRow:
        """Makes a row that is about to be sent."""
        return cls(Answer(source, source.request(context_length)))

    def advance(self, fields: Fields) -> TextEvent:
        """Applies an event from the replica."""
        request = self.answer.request
        timing = request.timing
        tokens, first = fields["tokens"], not request.output_ids
        request.output_ids += tokens
        if timing.first_token is None and fields["ttft"] is not None:
            timing.first_token = timing.arrived + fields["ttft"]
        self.answer.text += fields["text"]
        if "reason" in fields:
            request.finish_reason = FinishReason(fields["reason"])
            timing.finished = timing.arrived + (fields["total"] or time.perf_counter() - timing.arrived)
            request.seed, request.num_reused = fields["seed"], fields["reused"]
            request.times_put_back = fields["put_back"]
            request.logprobs = [
                TokenLogprob(token, logprob, tuple((other, value) for other, value in top))
                for token, logprob, top in fields["logprobs"]
            ]
        return TextEvent(self.answer, fields["text"], request.finished, first, len(tokens))
