"""One answer in progress: streams its text until it ends or is stopped.

Knows the background engine; knows nothing about terminals.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator

from inference.engine.background import Delivery
from inference.engine.request import Request
from inference.generation.model import GenerativeModel
from inference.generation.text import EncodedPrompt, TextEvent
from inference.tokenizer import Tokenizer


class Turn:
    """An answer.

    Attributes:
        stopped: `stop` was called before the answer ended.
    """

    def __init__(self, model: GenerativeModel, tokenizer: Tokenizer, source: EncodedPrompt):
        self._row = model.row(source, tokenizer)
        self._background = model.background
        self._deliveries: queue.SimpleQueue[Delivery[TextEvent] | None] = queue.SimpleQueue()
        self.stopped = False

    @property
    def request(self) -> Request:
        """The engine's request, with token counts and times."""
        return self._row.request

    @property
    def text(self) -> str:
        """The answer so far."""
        return self._row.answer.text

    def __iter__(self) -> Iterator[str]:
        """Yields the text as it is generated.

        Raises:
            InferenceError: the model failed to generate the answer.
        """
        self._background.submit(self._row, self._deliveries.put)
        while not self.stopped and (delivery := self._deliveries.get()) is not None:
            event = delivery.unwrap()
            if event.text:
                yield event.text
            if delivery.last:
                return

    def stop(self) -> None:
        """Stops the answer at its current length. May be called from any thread."""
        self.stopped = True
        self._background.cancel(self.request)
        self._deliveries.put(None)
