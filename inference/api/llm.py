"""`LLM`: a model and its tokenizer, for programs with many prompts or many callers.

All calls, from any thread or event loop, share one running engine: their rows run together.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from inference.api.auto import AutoConfig, AutoModel
from inference.config import InferenceConfig, load_config
from inference.config.generation import sampling_setting
from inference.engine.background import Delivery
from inference.engine.metrics import RunMetrics
from inference.errors import GenerationError, InferenceError, InputError
from inference.generation.model import GenerativeModel
from inference.generation.record import Completion, completion_of, failed_completion, kind_of
from inference.generation.samples import SampleGatherer
from inference.generation.text import AnswerRow, EncodedPrompt, Encoder, TextEvent, sampling_notice
from inference.inputs.prompts import Prompt, prompt_from_mapping, prompt_of, token_ids_of
from inference.terminal.output import say
from inference.tokenizer import Tokenizer

# How many rows to read, as a multiple of those that run, so that a step never waits for the next prompt.
READ_AHEAD = 2
PromptLike = str | Sequence[int] | Mapping[str, Any] | Prompt
Prompts = PromptLike | Iterable[PromptLike]


class LLM:
    """A loaded model that answers prompts.

    Args:
        model: a preset's name, a directory, a YAML file or a Hugging Face repository; a config, as an object or as a
            mapping of its sections; or a model that is already loaded.
        tokenizer: by default the model's own.
        settings: as for `AutoConfig.from_pretrained`, such as `predict_batch_size`, or keys of `engine`, such as
            `weight_dtype`.

    Raises:
        InferenceError: the model cannot be found or loaded, or this process is a fork of one that loaded a model.
    """

    _is_closed = False

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
        self._notice = sampling_notice(say)

    def __repr__(self) -> str:
        return f"LLM({self.model!r}{', closed' if self._is_closed else ''})"

    @property
    def metrics(self) -> RunMetrics:
        """The metrics of the shared engine so far."""
        return self.model.metrics

    def generate(self, prompts: Prompts, *, return_errors: bool = False, **settings: Any) -> Iterator[Completion]:
        """Answers prompts; yields the answers in the order of the prompts.

        Prompts are read only as needed, so there can be any number of them. A complete answer waits for those before
        it; `as_completed` does not wait. Closing the iterator cancels the prompts in progress.

        Args:
            prompts: one or many. Each is a text, token ids, the messages of a chat, or a mapping as in a .jsonl file:
                `prompt` or `messages`, optionally with `custom_id` and its own settings.
            return_errors: if a prompt cannot run or the model fails on it, yield a completion with its `error` instead
                of raising the error.
            settings: generation settings for all prompts; a prompt's own settings override them.

        Raises:
            ConfigError: a setting is unknown; raised at once.
            InferenceError: the LLM is closed; raised at once.
            InputError: a prompt cannot be used; raised when it is read.
            GenerationError: the model failed on a prompt.
        """
        return _in_order(self.as_completed(prompts, return_errors=return_errors, **settings))

    def as_completed(self, prompts: Prompts, *, return_errors: bool = False, **settings: Any) -> Iterator[Completion]:
        """Does the same as `generate`, but yields each answer as it finishes; `index` is the index of its prompt."""
        given: Any = [prompts] if _is_one(prompts) else prompts
        if not isinstance(given, Iterable):
            raise InputError(
                f"prompts are {type(given).__name__}", "give a text, token ids, messages, or an iterable of these"
            )
        return self._completions(enumerate(given), self._encoder(settings), return_errors)

    def chat(self, messages: str | Mapping[str, Any] | Sequence[Mapping[str, Any]], **settings: Any) -> Completion:
        """Answers a chat: messages with `role` and `content`, put into the model's chat template. A text is the message
        of a user.

        Raises:
            InputError: the messages cannot be used, or the model has no chat template.
        """
        (completion,) = self.generate({"messages": _messages(messages)}, **settings)
        return completion

    def _completions(
        self, prompts: Iterable[tuple[int, Any]], encoder: Encoder, return_errors: bool
    ) -> Iterator[Completion]:
        refused: deque[Completion] = deque()
        gatherer = SampleGatherer()
        name = self.model.source.name

        def rows() -> Iterator[AnswerRow]:
            for index, value in prompts:
                try:
                    samples = encoder.encode(index, as_prompt(value, index)).samples
                except InputError as error:
                    if not return_errors:
                        raise
                    custom_id = str(value.get("custom_id", index)) if isinstance(value, Mapping) else str(index)
                    prompt = value if isinstance(value, str) else None
                    refused.append(
                        failed_completion(custom_id, index, kind_of(error), str(error), prompt=prompt, model=name)
                    )
                else:
                    yield from (self.model.row(sample, self.tokenizer) for sample in samples)

        most = READ_AHEAD * self.model.max_sequences
        for delivery in self.model.background.stream(rows(), most, every_token=False):
            while refused:
                yield refused.popleft()
            if return_errors and isinstance(delivery.error, (InputError, GenerationError)):
                row = delivery.row
                assert isinstance(row, AnswerRow)
                source, error = row.answer.source, delivery.error
                prompt, custom_id = source.text, source.prompt.custom_id
                if gatherer.fail(source):
                    yield failed_completion(
                        custom_id, source.row, kind_of(error), str(error), prompt=prompt, model=name
                    )
            elif (answer := gatherer.take(delivery.unwrap().answer)) is not None:
                yield completion_of(answer, name)
        yield from refused

    def stream(self, prompt: PromptLike, **settings: Any) -> TextStream:
        """Starts to answer one prompt; returns a stream of its text. Several streams can run side by side.

        Raises:
            ConfigError: a setting is unknown.
            InputError: the prompt cannot be used.
        """
        return TextStream(self, self._encoder(settings).encode(0, as_prompt(prompt, 0)))

    def agenerate(self, prompt: PromptLike, **settings: Any) -> AsyncTextStream:
        """Does the same in an event loop: `await` the result for the whole answer, or iterate over it with `async for`.

        The prompt starts when the stream is first awaited, and is cancelled when the stream is closed or its task is
        cancelled.

        Raises:
            ConfigError: a setting is unknown.
            InputError: the prompt cannot be used.
        """
        return AsyncTextStream(self, self._encoder(settings).encode(0, as_prompt(prompt, 0)))

    def close(self) -> None:
        """Cancels all prompts in progress and refuses later calls. Another LLM can still use the model."""
        self._is_closed = True
        self.model.background.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _encoder(self, settings: Mapping[str, Any]) -> Encoder:
        if self._is_closed:
            raise InferenceError("this LLM is closed", "make another one, or close it later")
        implied = None if self.model.generation_config.do_sample else sampling_setting(settings)
        if implied:
            self._notice(implied)
        return replace(self.model.encoder(self.tokenizer, **settings), notice=self._notice)


class TextStream:
    """Iterates over the text of an answer as it is generated.

    Attributes:
        completion: the whole answer; None until it is complete.
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
        """Cancels the prompt, if it is not finished."""
        self._ended = True
        self._background.cancel(self._row.request)

    def __del__(self) -> None:
        if not self._ended:
            self.close()


class AsyncTextStream:
    """Iterates over the text of an answer as it is generated, in an event loop.

    Attributes:
        completion: the whole answer; None until it is complete.
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

    def __await__(self) -> Generator[Any, None, Completion]:
        return self.result().__await__()

    async def result(self) -> Completion:
        """Waits for the whole answer and returns it."""
        async for _ in self._pieces:
            pass
        assert self.completion is not None
        return self.completion

    async def aclose(self) -> None:
        """Cancels the prompt, if it is not finished."""
        await self._pieces.aclose()


def as_prompt(value: PromptLike, index: int) -> Prompt:
    """Converts a prompt from any of its forms.

    Raises:
        InputError: the value is not a prompt, or is empty.
    """
    where, name = f"prompt {index + 1}", str(index)
    if isinstance(value, Prompt):
        return value
    if _is_message(value):
        value = {"messages": [value]}
    elif _is_chat(value):
        value = {"messages": list(value)}
    return prompt_from_mapping(value, where, name) if isinstance(value, Mapping) else prompt_of(value, where, name)


def _messages(given: str | Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> list[Any]:
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    return [given] if isinstance(given, Mapping) else list(given)


def _is_one(prompts: Any) -> bool:
    return isinstance(prompts, (str, Mapping, Prompt)) or bool(token_ids_of(prompts)) or _is_chat(prompts)


def _is_chat(value: Any) -> bool:
    """Returns whether the value is the messages of a chat, not a list of prompts."""
    return isinstance(value, (list, tuple)) and bool(value) and all(map(_is_message, value))


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and "role" in value and not {"prompt", "messages", "body"} & value.keys()


def _in_order(completions: Iterator[Completion]) -> Iterator[Completion]:
    """Yields completions in the order of their index; one that arrives early waits for its turn."""
    early: dict[int | None, Completion] = {}
    turn = 0
    for completion in completions:
        early[completion.index] = completion
        while turn in early:
            yield early.pop(turn)
            turn += 1
