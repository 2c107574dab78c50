"""The rows of a request: they join the running batch, their text is followed, and they leave it with their client.

Knows the background engine; knows nothing about HTTP or the form of answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass

from inference.engine.background import BackgroundEngine, Delivery
from inference.generation.text import AnswerRow, TextEvent
from inference.serve.inbox import Inbox


class LeftError(Exception):
    """Nobody waits for the rows any more: they were let go of."""


@dataclass
class Piece:
    """What was added to an answer since its last piece.

    Args:
        choice: which answer of the request, from 0.
        tokens: of the answer so far.
        finished: nothing follows.
    """

    choice: int
    row: AnswerRow
    text: str
    tokens: int
    finished: bool
    error: BaseException | None = None


class Rows:
    """The rows of one request, as the event loop sees them.

    A reader that is slow gets more text at once; nothing waits for it.

    Args:
        every_token: follow the text as it grows; otherwise there is one piece for each row.
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
            # The only event of a row holds the text of its last token alone.
            text = "" if event is None else event.text if every_token else row.answer.text
            inbox.put(self, Piece(choice, row, text, row.shown_tokens, delivery.last, delivery.error))

        return deliver

    def take(self, piece: Piece) -> None:
        """Takes a piece from the engine."""
        earlier = self._waiting.get(piece.choice)
        if earlier is not None:
            piece.text = earlier.text + piece.text
        self._waiting[piece.choice] = piece
        self._arrived.set()

    def cancel(self) -> None:
        """Lets go of the rows that are not finished."""
        self._left = True
        for row in self._rows:
            self._engine.cancel(row.request)
        self._arrived.set()

    async def begun(self) -> None:
        """Waits until there is something to show.

        Raises:
            LeftError: `cancel` was called.
            BaseException: what ended a row before.
        """
        await self._arrived.wait()
        self._check()
        _raise_first(self._waiting.values())

    async def __aiter__(self) -> AsyncIterator[list[Piece]]:
        """What has come, for each answer one piece at most.

        Raises:
            LeftError: `cancel` was called.
            BaseException: what ended a row without an answer.
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


def _raise_first(pieces: Iterable[Piece]) -> None:
    for piece in pieces:
        if piece.error is not None:
            raise piece.error
