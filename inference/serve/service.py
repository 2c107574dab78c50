"""The model and the state shared by all requests: encoder, model names, queue slots, metrics.

Knows the API's model; knows nothing about HTTP.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from inference.config import InferenceConfig
from inference.engine.request import TokenLogprob
from inference.errors import InputError
from inference.generation.model import GenerativeModel
from inference.generation.passes import PassRow, Steps, prompt_logprobs
from inference.generation.text import AnswerRow, EncodedPrompt, Encoder
from inference.serve.bodies import Ask
from inference.serve.generation import Piece, Rows, Work
from inference.serve.inbox import Inbox
from inference.serve.limits import Admission
from inference.serve.metrics import Figures
from inference.tokenizer import Tokenizer

Result = TypeVar("Result")


class Service:
    """A loaded model, for use by requests.

    Args:
        model: the model that answers.
        encoder: encodes prompts; holds the default settings, which requests may override.
    """

    def __init__(self, config: InferenceConfig, model: GenerativeModel, tokenizer: Tokenizer, encoder: Encoder):
        self.config, self.settings = config, config.serve
        self.model, self.tokenizer, self.encoder = model, tokenizer, encoder
        self.created = time.time()
        self.names = self.settings.model_name or (model.source.name,)
        self.admission = Admission(model.max_sequences, self.settings.max_waiting)
        self.figures = Figures(self.names[0], model, self.admission)
        self._inbox: Inbox[Piece] | None = None
        # Use one thread: not all tokenizers are thread-safe, and more threads would compete with the engine for cores.
        self._threads = ThreadPoolExecutor(1, "encode")

    @property
    def models(self) -> Mapping[str, str]:
        """Adapter by the model name that clients use; "" for the base model."""
        return {**{name: name for name in self.encoder.adapters}, **dict.fromkeys(self.names, "")}

    async def in_thread(self, work: Callable[..., Result], *arguments: object) -> Result:
        """Runs slow work in the encoder thread, so that it does not block the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, functools.partial(work, *arguments))

    def rows(self, ask: Ask) -> list[AnswerRow]:
        """Makes the rows of a request: the samples of the first prompt, then those of the next, and so on.

        Raises:
            InputError: a prompt cannot be encoded or does not fit.
        """
        rows: list[AnswerRow] = []
        for index, prompt in enumerate(ask.prompts):
            rows += [self._row(sample) for sample in self.encoder.encode(index, prompt).samples]
        return rows

    def start(self, rows: list[AnswerRow], every_token: bool) -> Rows:
        """Adds rows to the running batch. Call it in the event loop."""
        if self._inbox is None:
            self._inbox = Inbox(asyncio.get_running_loop())
        return Rows(self.model.background, self._inbox, rows, every_token)

    def measure(self, compute: Callable[..., Steps[Result]], rows: Sequence[PassRow], *arguments: Any) -> Work[Result]:
        """Runs prompts through the model without generating, between the steps of the running batch.

        Raises:
            InputError: the model has an encoder.
        """
        if self.encoder.decoder_start is not None:
            raise InputError(f"{self.model.config.architecture} has an encoder", "give a model without one")
        share = self.config.engine.prefix_cache
        return Work(self.model.background.interleave(compute(self.model.stepper, rows, *arguments, share=share)))

    def prompt_logprobs(self, rows: Sequence[AnswerRow], alternatives: int) -> Work[list[list[TokenLogprob]]]:
        """Computes the log probabilities of the tokens of prompts."""
        prompts = [PassRow(row.request.prompt_ids, row.request.adapter) for row in rows]
        return self.measure(prompt_logprobs, prompts, alternatives, self.model.config.vocab_size)

    def _row(self, source: EncodedPrompt) -> AnswerRow:
        return self.model.row(source, self.tokenizer)
