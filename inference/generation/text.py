"""From prompts to text: encodes prompts, runs them on an engine, and decodes tokens as they are generated.

Knows tokenizers and stop strings; knows nothing about files, terminals or how results are shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from inference.config import GenerationConfig
from inference.config.generation import sampling_setting
from inference.config.schema import adapters_hint
from inference.engine.constraint import TokenConstraint
from inference.engine.engine import BaseEngine
from inference.engine.request import FinishReason, Request, cache_key_of
from inference.errors import InferenceError, InputError
from inference.generation.stop_strings import HidingMatcher
from inference.inputs.prompts import Prompt
from inference.structured.structure import structure_of
from inference.structured.tool_calls import JSON, ToolFormat, format_of
from inference.structured.vocabulary import vocabulary_of
from inference.tokenizer import IncrementalDetokenizer, Tokenizer
from inference.tokenizer.chat import END_OF_THINK, THINK, reads_tools

# Minimum number of tokens to keep of a truncated prompt, even if the answer then has less room.
MINIMUM_KEPT = 16
# Number of requests that wait in the engine besides the running ones, so that a finished row is replaced at once.
WAITING = 4


@dataclass
class EncodedPrompt:
    """A prompt that fits the model: its ids, its text if it has one, and its settings.

    Args:
        row: its index in the input.
        text: as given; the rendered template for a chat, the decoded ids for token ids.
        is_chat: the answer is a separate text, not a continuation of the prompt.
        truncated: how many tokens were cut off.
        decoder_start: the token that begins an answer, for models with an encoder; None for others.
        adapter: number of its adapter in the model; 0 for none.
        sample: its number among the samples of the prompt.
        seed_row: distinguishes its seed from those of the run's other rows; 0 if the row has its own seed.
        constraint: makes the constraint of an answer, such as a grammar; called once for each sample.
        tool_format: the format of tool calls in the answer; None if it may call none.
        shown: special tokens that are part of the answer's text: the marks of reasoning and of tool calls.
    """

    row: int
    prompt: Prompt
    text: str
    ids: list[int]
    generation: GenerationConfig
    is_chat: bool = False
    truncated: int = 0
    decoder_start: int | None = None
    adapter: int = 0
    sample: int = 0
    seed_row: int = 0
    constraint: Callable[[], TokenConstraint] | None = None
    tool_format: ToolFormat | None = None
    shown: frozenset[int] = frozenset()

    @property
    def continues(self) -> bool:
        """Whether the answer continues the prompt's text."""
        return not self.is_chat and self.decoder_start is None

    @property
    def heading(self) -> str:
        """The text that `echo` prints before the answer; with an encoder the prompt gets its own line."""
        return self.text if self.decoder_start is None else f"{self.text}\n"

    def full_text(self, answer: str) -> str:
        """Returns the prompt and its answer as one text; the answer alone for models with an encoder."""
        return self.text + answer if self.decoder_start is None else answer

    @property
    def samples(self) -> list[EncodedPrompt]:
        """The prompt once for each requested answer."""
        return [self, *(replace(self, sample=number) for number in range(1, self.generation.num_return_sequences))]

    def request(self, context_length: int) -> Request:
        """Makes the engine's request for the prompt."""
        prompt_ids = self.ids if self.decoder_start is None else [self.decoder_start]
        return Request(
            self.prompt.custom_id,
            prompt_ids,
            self.generation,
            self.generation.new_token_limit(len(prompt_ids), context_length),
            self.generation.new_token_minimum(len(prompt_ids)),
            cache_key=cache_key_of(self.adapter),
            adapter=self.adapter,
            source_ids=None if self.decoder_start is None else self.ids,
            row=self.seed_row,
            sample=self.sample,
            constraint=self.constraint() if self.constraint else None,
        )


@dataclass(frozen=True)
class Encoder:
    """Turns prompts into ids that fit the model's context.

    Args:
        tokenizer: None if all prompts are token ids.
        chat: put every prompt into the tokenizer's chat template.
        truncate: the side on which to cut a prompt that is too long; None to refuse it.
        decoder_start: the token that begins an answer, for models with an encoder; prompt and answer
            may then each be as long as the context.
        notice: called with the setting that makes a row sampled without do_sample.
        adapters: numbers of the adapters that a prompt may name.
        adapter_ids: adapters of the prompts that do not name one, in the order of the prompts.
        template_variables: variables of the chat template, besides the messages.
    """

    tokenizer: Tokenizer | None
    vocab_size: int
    context_length: int
    generation: GenerationConfig
    chat: bool = False
    truncate: str | None = None
    decoder_start: int | None = None
    adapters: Mapping[str, int] = field(default_factory=dict)
    adapter_ids: Sequence[str] = ()
    template_variables: Mapping[str, Any] = field(default_factory=dict)
    notice: Callable[[str], None] | None = None

    def encode_all(self, prompts: Iterable[Prompt]) -> list[EncodedPrompt]:
        """Encodes all prompts, in order.

        Raises:
            InputError: a prompt cannot be encoded or does not fit; the message names it.
        """
        return [self.encode(row, prompt) for row, prompt in enumerate(prompts)]

    def encode(self, row: int, prompt: Prompt) -> EncodedPrompt:
        """Encodes one prompt."""
        try:
            return self._encode(row, prompt)
        except InferenceError as error:
            if error.what.startswith(prompt.where):
                raise
            raise InputError(f"{prompt.where}: {error.what}", error.hint) from error

    def _encode(self, row: int, prompt: Prompt) -> EncodedPrompt:
        generation = self.generation.updated(**prompt.settings) if prompt.settings else self.generation
        implied = None if self.generation.do_sample else sampling_setting(prompt.settings)
        if implied and self.notice:
            self.notice(implied)
        adapter = self.adapter_of(row, generation)
        text, ids = self._text_and_ids(prompt)
        limit = self._limit(generation)
        excess = len(ids) - limit
        if excess > 0:
            if self.truncate is None or limit < 1:
                reason = "can be read" if self.decoder_start is not None else "leave room for an answer"
                raise InputError(
                    f"the prompt has {len(ids)} tokens, at most {limit} {reason} ({self._limit_name(generation)})",
                    "shorten it, or cut it with --truncate left or right",
                )
            # Cut enough to leave room for the whole answer, but keep MINIMUM_KEPT tokens of the prompt.
            answer = (generation.max_new_tokens or 1) - 1 if self.decoder_start is None else 0
            keep = max(limit - answer, min(limit, MINIMUM_KEPT))
            excess = len(ids) - keep
            ids = ids[excess:] if self.truncate == "left" else ids[:keep]
        is_chat = prompt.token_ids is None and (self.chat or prompt.messages is not None)
        cut = max(excess, 0)
        # If the row has its own seed, its results do not depend on its index.
        seed_row = 0 if prompt.settings.get("seed") is not None else row
        form = self._tool_format(prompt)
        return EncodedPrompt(
            row,
            prompt,
            text,
            ids,
            generation,
            is_chat,
            cut,
            self.decoder_start,
            adapter,
            seed_row=seed_row,
            constraint=self._constraint(generation),
            tool_format=form,
            shown=self._marks(form) if is_chat else frozenset(),
        )

    def _tool_format(self, prompt: Prompt) -> ToolFormat | None:
        """Returns the format of the answer's tool calls. A required call is JSON, because a grammar constrains it."""
        if prompt.tools is None or self.tokenizer is None:
            return None
        template = self.tokenizer.template_of(self._variables(prompt).get("chat_template"), True)
        return format_of(template) if reads_tools(template) and not prompt.tools.must else JSON

    def _marks(self, form: ToolFormat | None) -> frozenset[int]:
        """Returns the special tokens that mark reasoning or tool calls."""
        if self.tokenizer is None:
            return frozenset()
        marks = {THINK, END_OF_THINK, *(form.marks if form else ())}
        return frozenset(
            token for token in self.tokenizer.all_special_ids if self.tokenizer.id_to_token(token) in marks
        )

    def _constraint(self, generation: GenerationConfig) -> Callable[[], TokenConstraint] | None:
        """Compiles the constraint of a structured answer, before the row takes a slot; returns a factory for it.

        Raises:
            InputError: the constraint cannot be compiled.
        """
        if generation.structured_outputs is None and generation.response_format is None:
            return None
        grammar = structure_of(generation.structured_outputs, generation.response_format)
        if grammar is None:
            return None
        if self.tokenizer is None:
            raise InputError("without a tokenizer an answer cannot have a form")
        return vocabulary_of(self.tokenizer, self.vocab_size, generation.eos_token_id).compile(grammar)

    def adapter_of(self, row: int, generation: GenerationConfig) -> int:
        """Returns the number of a prompt's adapter: the one that its settings name, or the one for its row.

        Raises:
            InputError: there is no adapter of that name, or none for that row.
        """
        name = generation.adapter_id
        if name is None and self.adapter_ids:
            if row >= len(self.adapter_ids):
                raise InputError(
                    f"adapter_id names {len(self.adapter_ids)} adapters, this is prompt {row + 1}",
                    "name one for all prompts, or one for each; a row may name its own",
                )
            name = self.adapter_ids[row]
        if not name:
            return 0
        if name not in self.adapters:
            raise InputError(f"adapter_id '{name}' is not an adapter of this model", adapters_hint(self.adapters))
        return self.adapters[name]

    def _limit(self, generation: GenerationConfig) -> int:
        """Returns the maximum length of a prompt, which leaves room for one token; with an encoder, the context."""
        if self.decoder_start is not None:
            return self.context_length
        if generation.max_new_tokens is None and generation.max_length is not None:
            return min(self.context_length, generation.max_length) - 1
        return self.context_length - 1

    def _limit_name(self, generation: GenerationConfig) -> str:
        if self._limit(generation) < self.context_length - 1:
            return f"max_length is {generation.max_length}"
        return f"the model's context is {self.context_length}"

    def _text_and_ids(self, prompt: Prompt) -> tuple[str, list[int]]:
        if prompt.token_ids is not None:
            ids = list(prompt.token_ids)
            if not ids:
                raise InputError("the prompt has no tokens")
            outside = [token for token in ids if not 0 <= token < self.vocab_size]
            if outside:
                raise InputError(f"token id {outside[0]} is outside the vocabulary of {self.vocab_size}")
            return self.tokenizer.decode(ids) if self.tokenizer else "", ids
        if self.tokenizer is None:
            raise InputError("without a tokenizer a prompt must be token ids")
        if prompt.messages is None and not self.chat:
            assert prompt.text is not None
            return prompt.text, self._checked(self.tokenizer.encode(prompt.text))
        messages = list(prompt.messages or [{"role": "user", "content": prompt.text}])
        variables = self._variables(prompt)
        if prompt.tools is not None and not reads_tools(
            self.tokenizer.template_of(variables.get("chat_template"), True)
        ):
            messages = _with_system(messages, prompt.tools.describe())
        given = {key: value for key, value in prompt.chat.items() if key != "chat_template_kwargs"}
        text = str(self.tokenizer.apply_chat_template(messages, **{**variables, **given, "tokenize": False}))
        return text, self._checked(self.tokenizer.encode(text, add_special_tokens=False))

    def _variables(self, prompt: Prompt) -> dict[str, Any]:
        """Returns the variables of the chat template."""
        return {**self.template_variables, **prompt.chat.get("chat_template_kwargs", {})}

    def _checked(self, ids: list[int]) -> list[int]:
        if not ids:
            raise InputError("the prompt has no tokens")
        if max(ids) >= self.vocab_size:
            raise InputError(
                f"the tokenizer gives id {max(ids)}, the model's vocabulary has {self.vocab_size}",
                "the tokenizer is another model's",
            )
        return ids


def _with_system(messages: Sequence[Mapping[str, Any]], text: str) -> list[Mapping[str, Any]]:
    """Adds text to the system message, which is the first if there is one."""
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": text}, *messages]
    return [{**messages[0], "content": f"{messages[0]['content']}\n\n{text}"}, *messages[1:]]


def sampling_notice(say: Callable[[str], None]) -> Callable[[str], None]:
    """Returns a function that reports, once per setting, that rows are sampled because of it."""

    @cache
    def notice(setting: str) -> None:
        say(f"{setting} without do_sample: answers are sampled; give do_sample False for the likeliest tokens")

    return notice


@dataclass(eq=False)
class Answer:
    """An answer as it grows; complete once `request.finished`."""

    source: EncodedPrompt
    request: Request
    text: str = ""
    samples: list[Answer] = field(default_factory=list)
    """Every answer to the prompt, this one first, if several were requested and all are complete."""

    @property
    def row(self) -> int:
        return self.source.row

    @property
    def texts(self) -> list[str]:
        """The text of every sample."""
        return [sample.text for sample in self.samples] or [self.text]


@dataclass(frozen=True)
class TextEvent:
    """The new text of an answer, possibly empty, from at least one new token.

    Args:
        finished: it is the last event of the answer.
        first: it is the first event of the answer.
        tokens: the number of new tokens.
    """

    answer: Answer
    text: str
    finished: bool
    first: bool
    tokens: int = 1


@dataclass(frozen=True)
class Failure:
    """An accepted prompt without an answer: the engine cannot run it (InputError), or the model failed on it."""

    source: EncodedPrompt
    error: InferenceError


@dataclass(frozen=True)
class Load:
    """The load of an engine: running and waiting rows, and the share of its KV cache in use, 0 to 1."""

    running: int = 0
    waiting: int = 0
    kv_use: float = 0.0


class TextGenerator:
    """Runs encoded prompts on an engine; each step returns their new text.

    Args:
        skip_special_tokens: leave special tokens out of the text.
    """

    def __init__(self, engine: BaseEngine, tokenizer: Tokenizer, skip_special_tokens: bool = True):
        self.engine = engine
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._rows: dict[Request, AnswerRow] = {}

    @property
    def capacity(self) -> int:
        """Maximum number of prompts in the engine at a time: one for each row of a step, and a few that wait."""
        return self.engine.max_sequences + WAITING

    @property
    def num_rows(self) -> int:
        """The number of unfinished prompts."""
        return self.engine.num_running + self.engine.num_waiting

    @property
    def has_room(self) -> bool:
        """Whether more prompts can be used now."""
        return self.num_rows < self.capacity

    @property
    def load(self) -> Load:
        """The current load."""
        engine = self.engine
        return Load(engine.num_running, engine.num_waiting, engine.kv_use)

    @property
    def busy(self) -> bool:
        """Whether any answer is not finished."""
        return bool(self._rows)

    def add(self, source: EncodedPrompt) -> None:
        """Queues a prompt.

        Raises:
            InputError: the engine cannot take it.
        """
        request = source.request(self.engine.context_length)
        self.engine.add(request)
        self._rows[request] = self._row(source, request)

    def step(self) -> list[TextEvent | Failure]:
        """Runs one step of the engine; returns the new text and the prompts that failed."""
        events: list[TextEvent | Failure] = []
        for request in self.engine.step():
            row = self._rows[request]
            event = self.engine.advance(row)
            if event is not None:
                events.append(event)
            if request.error is not None:
                events.append(Failure(row.answer.source, request.error))
            if request.finished:
                del self._rows[request]
        return events

    def cancel(self) -> None:
        """Cancels all unfinished answers."""
        for request in self._rows:
            self.engine.finish(request, FinishReason.CANCELLED)
        self._rows.clear()

    def _row(self, source: EncodedPrompt, request: Request) -> AnswerRow:
        return AnswerRow.begin(source, request, self._tokenizer, self._skip_special_tokens)


@dataclass(eq=False)
class AnswerRow:
    """An answer, with the state that turns its tokens into text."""

    answer: Answer
    detokenizer: IncrementalDetokenizer
    matcher: HidingMatcher
    hidden: Callable[[int], str]
    shown_tokens: int = 0
    taken_tokens: int = 0

    @classmethod
    def begin(
        cls, source: EncodedPrompt, request: Request, tokenizer: Tokenizer, skip_special_tokens: bool = True
    ) -> AnswerRow:
        """Makes the row of a request that has no tokens yet."""
        # Decode a continuation after its prompt, so that the space before its first word is kept.
        context = source.ids if source.continues else ()
        skips = skip_special_tokens and source.generation.skip_special_tokens
        detokenizer = IncrementalDetokenizer(tokenizer, skips, context, source.shown)
        special = tokenizer.all_special_ids - source.shown if skips else frozenset()

        def hidden(token_id: int) -> str:
            """Returns the text of a token that is not shown in answers."""
            return tokenizer.token_bytes(token_id).decode("utf-8", "replace") if token_id in special else ""

        return cls(Answer(source, request), detokenizer, HidingMatcher(source.generation.stop), hidden)

    @property
    def request(self) -> Request:
        return self.answer.request

    def advance(self, engine: BaseEngine) -> TextEvent:
        """Takes the request's new tokens."""
        request = self.answer.request
        # If special tokens are shown, also show the one that ended the answer.
        skips = self.answer.source.generation.skip_special_tokens
        first, text = self.taken_tokens == 0, ""
        for token in (request.answer_ids if skips else request.output_ids)[self.shown_tokens :]:
            self.shown_tokens += 1
            text += self.matcher.push(self.detokenizer.push(token), self.hidden(token))
            if self.matcher.matched is not None:
                # Drop tokens after the stop string: they exist only because speculation guessed them right.
                engine.cut(request, self.shown_tokens)
                break
        if request.finished:
            text += self.matcher.push(self.detokenizer.finish())
        if self.matcher.matched is not None:
            engine.finish(request, FinishReason.STOP)
            request.finish_reason = FinishReason.STOP
        elif request.finished:
            text += self.matcher.finish()
        self.answer.text += text
        fresh = len(request.output_ids) - self.taken_tokens
        self.taken_tokens += fresh
        return TextEvent(self.answer, text, request.finished, first, fresh)
