"""Answers in OpenAI's formats: `chat.completion` and `text_completion`, whole and streamed as chunks.

A whole answer is built from the same parts as a stream, so both have the same contents. Knows these formats; knows
nothing about HTTP.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from inference.engine.request import FinishReason, Request, TokenLogprob
from inference.generation.message import TOOL_CALLS, merge_delta, message_reader
from inference.generation.text import AnswerRow
from inference.serve.bodies import Ask
from inference.serve.generation import Piece, Rows
from inference.tokenizer import IncrementalDetokenizer, Tokenizer

DONE = b"data: [DONE]\n\n"


class Answers:
    """All answers of one request.

    Args:
        model: the model's name in the client's request.
        rows: the samples of the first prompt, then those of the next, and so on.
        tokenizer: converts tokens to text if log probabilities are requested.
        finished: called with the request of each finished row.
        prompt_logprobs: for each prompt, the log probabilities of all tokens except the first.
    """

    def __init__(
        self,
        ask: Ask,
        model: str,
        rows: Sequence[AnswerRow],
        tokenizer: Tokenizer,
        finished: Callable[[Request], None] = lambda request: None,
        prompt_logprobs: Sequence[Sequence[TokenLogprob]] = (),
    ):
        self._ask, self._rows, self._finished = ask, rows, finished
        known = [prompt_logprobs[index // ask.samples] if prompt_logprobs else () for index in range(len(rows))]
        self._choices = [_Choice(ask, index, row, tokenizer, known[index]) for index, row in enumerate(rows)]
        kind = "chat.completion" if ask.chat else "text_completion"
        self._head = {"id": ask.name, "object": kind, "created": int(time.time()), "model": model}

    async def whole(self, rows: Rows) -> dict[str, Any]:
        """Waits for all answers and returns them as one object."""
        async for pieces in rows:
            for piece in pieces:
                self._choices[piece.choice].add(piece)
                if piece.finished:
                    self._finished(piece.row.request)
        return {**self._head, "choices": [choice.whole() for choice in self._choices], "usage": self.usage()}

    def without_text(self) -> dict[str, Any]:
        """Returns the prompts as the answers of a request that generates nothing."""
        for choice, row in zip(self._choices, self._rows, strict=True):
            row.request.finish(FinishReason.LENGTH)
            choice.add(Piece(0, row, "", 0, True))
        return {**self._head, "choices": [choice.whole() for choice in self._choices], "usage": self.usage()}

    async def events(self, rows: Rows) -> AsyncIterator[bytes]:
        """Streams the chunks as server-sent events."""
        if self._ask.chat:
            self._head["object"] = "chat.completion.chunk"
            for choice in self._choices:
                yield self._event([choice.part({"role": "assistant", "content": ""})])
        async for parts in self.parts(rows):
            yield b"".join(self._event([part]) for part in parts)
        if self._ask.include_usage:
            yield self._event([], self.usage())
        yield DONE

    async def parts(self, rows: Rows) -> AsyncIterator[list[dict[str, Any]]]:
        """Yields the parts of the answers as they arrive, in the format of a chunk's `choices`."""
        async for pieces in rows:
            parts: list[dict[str, Any]] = []
            for piece in pieces:
                parts += self._choices[piece.choice].parts(piece)
                if piece.finished:
                    self._finished(piece.row.request)
            if parts:
                yield parts

    def _event(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> bytes:
        chunk = {**self._head, "choices": choices}
        if self._ask.include_usage:
            chunk["usage"] = self.usage() if self._ask.continuous_usage else usage
        return as_event(chunk)

    def usage(self) -> dict[str, Any]:
        """Returns the token counts so far."""
        requests = [row.request for row in self._rows]
        first = requests[:: self._ask.samples]
        return usage_of(
            sum(request.num_prompt_tokens for request in first),
            sum(len(request.output_ids) for request in requests),
            sum(request.num_reused for request in first),
        )


def usage_of(prompt: int, completion: int, cached: int) -> dict[str, Any]:
    """Returns token counts in OpenAI's format."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def as_event(value: Mapping[str, Any]) -> bytes:
    """Formats a server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


class _Choice:
    """One answer of a request."""

    def __init__(
        self, ask: Ask, index: int, row: AnswerRow, tokenizer: Tokenizer, prompt_logprobs: Sequence[TokenLogprob]
    ):
        self._ask, self._index, self._row, self._tokenizer = ask, index, row, tokenizer
        self._prompt_logprobs = prompt_logprobs
        self._reader = message_reader(row.answer.source)
        self._told = 0
        self._begun = False
        self._offset = 0
        self._parts: list[dict[str, Any]] = []

    def add(self, piece: Piece) -> None:
        """Adds a piece to the answer that `whole` returns."""
        self._parts += self.parts(piece)

    def whole(self) -> dict[str, Any]:
        """Returns the answer as one object."""
        reason = self._parts[-1]["finish_reason"]
        if not self._ask.chat:
            text = "".join(part["text"] for part in self._parts)
            logprobs = _joined([part["logprobs"] for part in self._parts if part["logprobs"]])
            return {"index": self._index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        message: dict[str, Any] = {"role": "assistant", "content": None}
        for part in self._parts:
            merge_delta(message, part["delta"])
        if message["content"] is None and "tool_calls" not in message:
            message["content"] = ""
        logprobs = _joined([part["logprobs"] for part in self._parts if part["logprobs"]])
        return {"index": self._index, "message": message, "logprobs": logprobs, "finish_reason": reason}

    def parts(self, piece: Piece) -> list[dict[str, Any]]:
        """Returns the chunks that a piece adds to the stream; empty if its text is held back for now."""
        reason = self._reason(piece)
        if not self._ask.chat:
            begins, text = self._ask.echo and not self._begun, piece.text
            if not text and not begins and reason is None:
                return []
            self._begun = True
            logprobs = []
            if begins:
                logprobs = [self._echoed_logprobs()]
                self._offset = len(self._row.answer.source.text)
            logprobs.append(self._completion_logprobs(piece))
            self._offset += len(text)
            text = self._row.answer.source.text + text if begins else text
            joined = _joined([part for part in logprobs if part is not None])
            return [{"index": self._index, "text": text, "logprobs": joined, "finish_reason": reason}]
        deltas = list(self._reader.push(piece.text))
        if piece.finished:
            deltas += self._reader.finish()
            if reason == "stop" and self._reader.has_calls:
                reason = TOOL_CALLS
        parts = [self.part(delta) for delta in deltas]
        if reason is not None:
            parts.append(self.part({}, reason))
        if parts:
            parts[0]["logprobs"] = self._chat_logprobs(piece)
        return parts

    def part(self, delta: Mapping[str, Any], reason: str | None = None) -> dict[str, Any]:
        """Makes one chunk of a chat stream."""
        return {"index": self._index, "delta": dict(delta), "logprobs": None, "finish_reason": reason}

    def _reason(self, piece: Piece) -> str | None:
        reason = self._row.request.finish_reason
        return reason.value if piece.finished and reason is not None else None

    def _fresh(self, piece: Piece) -> list[TokenLogprob] | None:
        """Returns the log probabilities that have not been sent yet."""
        request = self._row.request
        if request.generation.logprobs is None:
            return None
        fresh = request.logprobs[self._told : piece.tokens]
        self._told = piece.tokens
        return fresh

    def _chat_logprobs(self, piece: Piece) -> dict[str, Any] | None:
        fresh = self._fresh(piece)
        return None if fresh is None else {"content": [self._chat_token(item) for item in fresh], "refusal": None}

    def _chat_token(self, item: TokenLogprob) -> dict[str, Any]:
        top = [self._named(token, logprob) for token, logprob in item.top]
        return {**self._named(item.token_id, item.logprob), "top_logprobs": top}

    def _named(self, token: int, logprob: float) -> dict[str, Any]:
        data = self._tokenizer.token_bytes(token)
        return {"token": token_text(self._tokenizer, token), "logprob": finite(logprob), "bytes": list(data)}

    def _echoed_logprobs(self) -> dict[str, Any] | None:
        """Returns the log probabilities of the prompt; null for its first token, which has no predecessor."""
        if self._ask.prompt_logprobs is None:
            return None
        ids = self._row.request.prompt_ids
        detokenizer, offsets, offset = IncrementalDetokenizer(self._tokenizer), [], 0
        for token in ids:
            offsets.append(offset)
            offset += len(detokenizer.push(token))
        rest = self._listed_logprobs(self._prompt_logprobs, offsets[1:])
        first = {"tokens": [token_text(self._tokenizer, ids[0])], "token_logprobs": [None], "top_logprobs": [None]}
        return _joined([{**first, "text_offset": [0]}, rest])

    def _completion_logprobs(self, piece: Piece) -> dict[str, Any] | None:
        fresh = self._fresh(piece)
        if fresh is None:
            return None
        offsets, offset = [], self._offset
        for item in fresh:
            offsets.append(offset)
            offset += len(token_text(self._tokenizer, item.token_id))
        return self._listed_logprobs(fresh, offsets)

    def _listed_logprobs(self, fresh: Sequence[TokenLogprob], offsets: Sequence[int]) -> dict[str, Any]:
        texts = [token_text(self._tokenizer, item.token_id) for item in fresh]
        tops = []
        for text, item in zip(texts, fresh, strict=True):
            top = {token_text(self._tokenizer, token): finite(logprob) for token, logprob in item.top}
            tops.append({**top, text: finite(item.logprob)})
        return {
            "tokens": texts,
            "token_logprobs": [finite(item.logprob) for item in fresh],
            "top_logprobs": tops,
            "text_offset": list(offsets),
        }


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """Returns a token's text, or its name if it has no text."""
    data = tokenizer.token_bytes(token)
    return data.decode("utf-8", "replace") if data else tokenizer.id_to_token(token) or ""


def finite(logprob: float) -> float:
    """Clamps a log probability to OpenAI's minimum of -9999, because JSON cannot represent minus infinity."""
    return max(logprob, -9999.0)


def _joined(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Joins the log probabilities of several parts."""
    if not parts:
        return None
    joined: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            joined[key] = [*joined.get(key, []), *value] if isinstance(value, list) else value
    return joined
