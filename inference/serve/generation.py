"""The rows of a request: adds them to the batch, follows their text, and cancels them if the client disconnects.

Knows the background engine; knows nothing about HTTP or the format of answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

from inference.engine.background import BackgroundEngine, Delivery
from inference.generation.text import AnswerRow, TextEvent
from inference.serve.inbox import Inbox

Result = TypeVar("Result")


class LeftError(Exception):
    """The rows were cancelled because the client disconnected."""


@dataclass
class Piece:
    """The addition to an answer since its previous piece.

    Args:
        choice: index of the answer in the request, from 0.
        tokens: number of tokens in the answer so far.
        finished: this is the last piece.
    """

    choice: int
    row: AnswerRow
    text: str
    tokens: int
    finished: bool
    error: BaseException | None = None


class Rows:
    """The rows of one request, for use in the event loop.

    A slow reader gets larger pieces; it never blocks the engine.

    Args:
        every_token: deliver a piece per step; otherwise deliver one piece per row.
    """

    def __init__(
        self, engine: BackgroundEngine, inbox: Inbox[Piece], rows: Sequence[AnswerRow], every_token: bool = True
    ):
        self._engine, self._rows = engine, rows
        self._waiting: dict[int, Piece] = {}
        self._arrived = asyncio.Event()
        self._open = len(rows)
        self._left = False
        for choice, row in enumerate(rows):
            engine.submit(row, self._deliver(inbox, choice, row, every_token), every_token)

    def _deliver(
        self, inbox: Inbox[Piece], choice: int, row: AnswerRow, every_token: bool
    ) -> Callable[[Delivery[TextEvent]], None]:
        def deliver(delivery: Delivery[TextEvent]) -> None:
            event = delivery.event
            # Without every_token, the row's only event holds only the text of its last token.
            text = "" if event is None else event.text if every_token else row.answer.text
            inbox.put(self, Piece(choice, row, text, row.shown_tokens, delivery.last, delivery.error))

        return deliver

    def take(self, piece: Piece) -> None:
        """Receives a piece from the engine."""
        earlier = self._waiting.get(piece.choice)
        if earlier is not None:
            piece.text = earlier.text + piece.text
        self._waiting[piece.choice] = piece
        self._arrived.set()

    def cancel(self) -> None:
        """Cancels the unfinished rows."""
        self._left = True
        for row in self._rows:
            self._engine.cancel(row.request)
        self._arrived.set()

    async def begun(self) -> None:
        """Waits for the first output.

        Raises:
            LeftError: `cancel` was called.
            BaseException: the error that ended a row before its first output.
        """
        await self._arrived.wait()
        self._check()
        _raise_first(self._waiting.values())

    async def __aiter__(self) -> AsyncIterator[list[Piece]]:
        """Yields the pieces that have arrived, at most one per answer.

        Raises:
            LeftError: `cancel` was called.
            BaseException: the error that ended a row without an answer.
        """
        while self._open:
            await self._arrived.wait()
            self._arrived.clear()
            self._check()
            pieces, self._waiting = list(self._waiting.values()), {}
            self._open -= sum(piece.finished for piece in pieces)
            _raise_first(pieces)
            if pieces:
                yield pieces

    def _check(self) -> None:
        if self._left:
            raise LeftError


class Work(Generic[Result]):
    """Work other than generating rows, which runs between the engine's steps."""

    def __init__(self, future: Future[Result]):
        self._future = future

    def cancel(self) -> None:
        """Cancels the work at its next pause."""
        self._future.cancel()

    async def result(self) -> Result:
        """Waits for the result.

        Raises:
            LeftError: `cancel` was called.
        """
        try:
            return await asyncio.wrap_future(self._future)
        except asyncio.CancelledError:
            if self._future.cancelled():
                raise LeftError from None
            raise


def _raise_first(pieces: Iterable[Piece]) -> None:
    for piece in pieces:
        if piece.error is not None:
            raise piece.error
