"""`LLM`: a model and its tokenizer for programs that have many prompts, or many callers.

All calls, from any thread or event loop, share one running engine: their rows run together.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from inference.api.auto import AutoConfig, AutoModel
from inference.config import InferenceConfig, load_config
from inference.engine.background import Delivery
from inference.engine.metrics import RunMetrics
from inference.errors import GenerationError, InputError
from inference.generation.model import GenerativeModel
from inference.generation.record import Completion, completion_of, failed_completion, kind_of
from inference.generation.text import AnswerRow, EncodedPrompt, Encoder, TextEvent
from inference.inputs.prompts import Prompt, prompt_from_mapping, prompt_of, token_ids_of
from inference.tokenizer import Tokenizer

# Rows that are read before they can run, as multiples of those that run: a step never waits for the next prompt.
READ_AHEAD = 2
PromptLike = str | Sequence[int] | Mapping[str, Any] | Prompt
Prompts = PromptLike | Iterable[PromptLike]


class LLM:
    """A loaded model that answers.

    Args:
        model: a preset's name, a directory, a YAML file or a Hugging Face repository; a config, as an object or as a
            mapping of its sections; or a model that is loaded already.
        tokenizer: the model's own where none is given.
        settings: as for `AutoConfig.from_pretrained`, such as `predict_batch_size`.

    Raises:
        InferenceError: the model cannot be found or loaded.
    """

    def __init__(
        self,
        model: str | Path | InferenceConfig | AutoConfig | Mapping[str, Any] | GenerativeModel,
        tokenizer: Tokenizer | None = None,
        **settings: Any,
    ):
        if isinstance(model, (str, Path)):
            model = AutoConfig.from_pretrained(model)
        elif isinstance(model, Mapping):
            model = load_config(model)
        if not isinstance(model, GenerativeModel):
            model = AutoModel.from_config(model, **settings)
        elif settings:
            raise InputError("a model that is loaded takes no settings", "give them to the call, or a config instead")
        self.model = model
        self.tokenizer = tokenizer or model.source.tokenizer()

    @property
    def metrics(self) -> RunMetrics:
        """What the shared engine has done so far."""
        return self.model.metrics

    def generate(self, prompts: Prompts, *, return_errors: bool = False, **settings: Any) -> Iterator[Completion]:
        """Answers prompts; yields each answer as it finishes.

        Prompts are read while they are needed, so their number does not matter. Closing the iterator lets go of those
        that are under way.

        Args:
            prompts: one or many: a text, token ids, or a mapping as in a .jsonl file: `prompt` or `messages`, and if
                wanted `custom_id` and settings of its own.
            return_errors: yield a row that cannot run, or on which the model fails, with its error, instead of raising
                the error.
            settings: of generation, for all prompts; those of a prompt outrank them.

        Raises:
            ConfigError: an unknown setting; at once.
            InputError: a prompt that cannot be used; when it is read.
            GenerationError: a prompt that the model failed on.
        """
        given: Any = [prompts] if _is_one(prompts) else prompts
        return self._completions(enumerate(given), self._encoder(settings), return_errors)

    def _completions(
        self, prompts: Iterable[tuple[int, Any]], encoder: Encoder, return_errors: bool
    ) -> Iterator[Completion]:
        refused: deque[Completion] = deque()
        name = self.model.source.name

        def rows() -> Iterator[AnswerRow]:
            for index, value in prompts:
                try:
                    yield self.model.row(encoder.encode(index, as_prompt(value, index)), self.tokenizer)
                except InputError as error:
                    if not return_errors:
                        raise
                    custom_id = str(value.get("custom_id", index)) if isinstance(value, Mapping) else str(index)
                    prompt = value if isinstance(value, str) else None
                    refused.append(
                        failed_completion(custom_id, index, kind_of(error), str(error), prompt=prompt, model=name)
                    )

        most = READ_AHEAD * self.model.max_sequences
        for delivery in self.model.background.stream(rows(), most, every_token=False):
            while refused:
                yield refused.popleft()
            if return_errors and isinstance(delivery.error, (InputError, GenerationError)):
                row = delivery.row
                assert isinstance(row, AnswerRow)
                source, error = row.answer.source, delivery.error
                prompt, custom_id = source.text, source.prompt.custom_id
                yield failed_completion(custom_id, source.row, kind_of(error), str(error), prompt=prompt, model=name)
            else:
                yield completion_of(delivery.unwrap().answer, name)
        yield from refused

    def stream(self, prompt: PromptLike, **settings: Any) -> TextStream:
        """Begins to answer one prompt, and gives its text as it comes. Several streams run side by side.

        Raises:
            ConfigError: an unknown setting.
            InputError: a prompt that cannot be used.
        """
        return TextStream(self, self._encoder(settings).encode(0, as_prompt(prompt, 0)))

    def agenerate(self, prompt: PromptLike, **settings: Any) -> AsyncTextStream:
        """The same in an event loop: an asynchronous iterator over the text of one prompt, which begins when it is
        first asked. Its row is let go of when the iterator is closed or its task is cancelled.

        Raises:
            ConfigError: an unknown setting.
            InputError: a prompt that cannot be used.
        """
        return AsyncTextStream(self, self._encoder(settings).encode(0, as_prompt(prompt, 0)))

    def close(self) -> None:
        """Lets go of all prompts that are under way. The model can be used again afterwards."""
        self.model.background.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _encoder(self, settings: Mapping[str, Any]) -> Encoder:
        return self.model.encoder(self.tokenizer, **settings)


class TextStream:
    """Text of an answer as it comes.

    Attributes:
        completion: the whole answer, once it is there.
    """

    def __init__(self, llm: LLM, source: EncodedPrompt):
        self.completion: Completion | None = None
        self._background, self._model_name = llm.model.background, llm.model.source.name
        self._row = llm.model.row(source, llm.tokenizer)
        self._deliveries: queue.SimpleQueue[Delivery[TextEvent]] = queue.SimpleQueue()
        self._ended = False
        self._background.submit(self._row, self._deliveries.put)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        while not self._ended:
            delivery = self._deliveries.get()
            self._ended = delivery.last
            event = delivery.unwrap()
            if event.finished:
                self.completion = completion_of(event.answer, self._model_name)
            if event.text:
                return event.text
        raise StopIteration

    def close(self) -> None:
        """Lets go of the row, if it is not finished."""
        self._ended = True
        self._background.cancel(self._row.request)

    def __del__(self) -> None:
        if not self._ended:
            self.close()


class AsyncTextStream:
    """Text of an answer as it comes, in an event loop.

    Attributes:
        completion: the whole answer, once it is there.
    """

    def __init__(self, llm: LLM, source: EncodedPrompt):
        self.completion: Completion | None = None
        self._pieces = self._run(llm, source)

    async def _run(self, llm: LLM, source: EncodedPrompt) -> AsyncGenerator[str, None]:
        events = llm.model.background.stream_async(llm.model.row(source, llm.tokenizer))
        try:
            async for event in events:
                if event.finished:
                    self.completion = completion_of(event.answer, llm.model.source.name)
                if event.text:
                    yield event.text
        finally:
            await events.aclose()

    def __aiter__(self) -> AsyncIterator[str]:
        return self._pieces

    async def result(self) -> Completion:
        """The whole answer, when it is there."""
        async for _ in self._pieces:
            pass
        assert self.completion is not None
        return self.completion

    async def aclose(self) -> None:
        """Lets go of the row, if it is not finished."""
        await self._pieces.aclose()


def as_prompt(value: PromptLike, index: int) -> Prompt:
    """A prompt in any of its forms.

    Raises:
        InputError: it is none, or empty.
    """
    where, name = f"prompt {index + 1}", str(index)
    if isinstance(value, Prompt):
        return value
    return prompt_from_mapping(value, where, name) if isinstance(value, Mapping) else prompt_of(value, where, name)


def _is_one(prompts: Any) -> bool:
    return isinstance(prompts, (str, Mapping, Prompt)) or bool(token_ids_of(prompts))
