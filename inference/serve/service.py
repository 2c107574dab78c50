"""The model and what all requests share: encoder, names of models, places in the queue, figures.

Knows the API's model; knows nothing about HTTP.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from inference.config import InferenceConfig
from inference.generation.model import GenerativeModel
from inference.generation.text import AnswerRow, EncodedPrompt, Encoder
from inference.serve.bodies import Ask
from inference.serve.generation import Piece, Rows
from inference.serve.inbox import Inbox
from inference.serve.limits import Admission
from inference.serve.metrics import Figures
from inference.tokenizer import Tokenizer

Result = TypeVar("Result")


class Service:
    """A loaded model as requests see it.

    Args:
        model: that answers.
        encoder: with the settings that requests may change.
    """

    def __init__(self, config: InferenceConfig, model: GenerativeModel, tokenizer: Tokenizer, encoder: Encoder):
        self.config, self.settings = config, config.serve
        self.model, self.tokenizer, self.encoder = model, tokenizer, encoder
        self.created = time.time()
        self.names = self.settings.model_name or (model.source.name,)
        self.admission = Admission(model.max_sequences, self.settings.max_waiting)
        self.figures = Figures(self.names[0], model, self.admission)
        self._inbox: Inbox[Piece] | None = None
        # One thread: tokenizers are not all safe for several, and more would only take the engine's cores.
        self._threads = ThreadPoolExecutor(1, "encode")

    @property
    def models(self) -> Mapping[str, str]:
        """By each name that a client may call, the adapter that answers; "" for the model itself."""
        return {**{name: name for name in self.encoder.adapters}, **dict.fromkeys(self.names, "")}

    async def in_thread(self, work: Callable[..., Result], *arguments: object) -> Result:
        """Runs what takes more than a moment beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, functools.partial(work, *arguments))

    def rows(self, ask: Ask) -> list[AnswerRow]:
        """The rows of a request: sample after sample of prompt after prompt.

        Raises:
            InputError: a prompt that cannot be encoded or does not fit.
        """
        rows: list[AnswerRow] = []
        for index, prompt in enumerate(ask.prompts):
            rows += [self._row(sample) for sample in self.encoder.encode(index, prompt).samples]
        return rows

    def start(self, rows: list[AnswerRow], every_token: bool) -> Rows:
        """Lets rows join the running batch. To be called in the event loop."""
        if self._inbox is None:
            self._inbox = Inbox(asyncio.get_running_loop())
        return Rows(self.model.background, self._inbox, rows, every_token)

    def _row(self, source: EncodedPrompt) -> AnswerRow:
        return self.model.row(source, self.tokenizer)
