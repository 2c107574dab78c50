"""A model that generates: network, cache and settings, with MindFormers' `generate`.

Knows engines and runners; `build` builds the runner, `cache_size` sizes its cache. Knows nothing about terminals.
"""

from __future__ import annotations

import operator
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from inference.checkpoint.tensor import StoredTensor
from inference.config import GENERATION_FILE, GenerationConfig, InferenceConfig, ignored_settings
from inference.engine.background import BackgroundEngine, check_process
from inference.engine.engine import BaseEngine, Engine
from inference.engine.metrics import RunMetrics
from inference.engine.request import Request
from inference.errors import GenerationError, InferenceError, InputError
from inference.generation.build import Say, build_runner, choose_kernels, format_in_memory, share
from inference.generation.cache_size import num_blocks
from inference.generation.ends import with_ends
from inference.generation.padding import unpadded
from inference.generation.samples import SampleGatherer
from inference.generation.streamers import BaseStreamer, IdStreams, SeparateStreamers
from inference.generation.text import AnswerRow, EncodedPrompt, Encoder
from inference.inputs.prompts import Prompt
from inference.models import kv_cache
from inference.models.architecture.t5_config import AnyConfig
from inference.models.runner import StepModel
from inference.models.source import ModelSource, resolve
from inference.models.tensor_parallel import LeadingRunner, agree_on_blocks
from inference.models.weights.sharding import Pairs
from inference.models.weights.weight_formats import weight_bytes
from inference.parallel.start import Ranks
from inference.tokenizer import Tokenizer


class GenerativeModel:
    """A loaded model.

    Args:
        source: the resolved model.
        pairs: its tensors (`source.pairs()`); None for random weights.
        positions: positions of KV cache that the work needs; None if unknown.
        row: positions that the longest row needs.
        progress: called with each tensor as it is loaded.
        ranks: the ranks that share the model, led by this one; None for a model in a single process.
        kernels: the kernels to use; None to choose them by the config.
        say: takes lines for the user, such as which kernels run the model.

    Attributes:
        times: how long loading and compiling took.
        runner: the part of the model in this process.
        stepper: the whole model.
        background: the engine that all calls share; `engine()` opens one for exclusive use.
        metrics: the metrics of `background`.

    Raises:
        InferenceError: there is too little memory.
    """

    _let_go: weakref.finalize[..., Any] | None = None

    def __init__(
        self,
        source: ModelSource,
        pairs: Pairs | None,
        *,
        positions: int | None = None,
        row: int = 1,
        progress: Callable[[StoredTensor], None] | None = None,
        ranks: Ranks | None = None,
        kernels: ModuleType | None = None,
        say: Say,
    ):
        self._set_up(source, say)
        chosen = kernels or choose_kernels(source.config, say)
        if ranks is None or ranks.group is None:
            if ranks is None:
                blocks = num_blocks(source, positions, format_in_memory(source, pairs, chosen), row)
            else:
                blocks, _ = share(source, pairs, chosen, ranks, positions, row)
            self.runner = build_runner(source, pairs, chosen, blocks, say, progress)
            self.stepper: StepModel = self.runner
        else:
            blocks = agree_on_blocks(ranks.links, lambda: share(source, pairs, chosen, ranks, positions, row))
            self.runner = build_runner(source, pairs, chosen, blocks, say, progress, ranks)
            leading = LeadingRunner(self.runner, ranks.links)
            # Close it also when the model is garbage-collected or the program ends without closing it.
            self._let_go = weakref.finalize(self, leading.close)
            self.stepper = leading
        self.runner.compile()
        self.times = self.runner.times

    def _set_up(self, source: ModelSource, say: Say) -> None:
        """Sets up what all models have in common."""
        check_no_fork()
        self.source = source
        ignored = ignored_settings(source.directory / GENERATION_FILE) if source.directory else []
        if ignored:
            say(f"{GENERATION_FILE}: without effect here: {', '.join(ignored)}")
        self.generation_config = source.generation
        self._process = os.getpid()
        # Two threads that run steps at the same time would overwrite each other's cache.
        self._lock = threading.Lock()
        self.metrics = RunMetrics()
        self.background = BackgroundEngine(lambda: self.engine(self.metrics))

    @classmethod
    def from_config(cls, config: InferenceConfig, say: Say) -> GenerativeModel:
        """Finds, checks and loads the model that a config names, in this process alone."""
        source = resolve(config)
        return cls(source, source.pairs(), say=say)

    def __repr__(self) -> str:
        format_name = self.runner.weight_format.value
        return f"{type(self).__name__}({self.source.name!r}, {self.config.architecture}, {format_name})"

    @property
    def config(self) -> AnyConfig:
        """The architecture."""
        return self.source.model

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights in memory."""
        return weight_bytes(self.config, self.runner.weight_format if self.runner.kernels.NARROW else None)

    @property
    def max_sequences(self) -> int:
        """Maximum number of rows in a step."""
        return self.source.config.rows_at_once

    @contextmanager
    def engine(self, metrics: RunMetrics | None = None) -> Iterator[BaseEngine]:
        """Opens an engine on this model; only one can be open at a time.

        Raises:
            InferenceError: this process is a fork of the one that loaded the model.
        """
        check_process(self._process)
        with self._lock:
            engine = self._new_engine(metrics)
            try:
                yield engine
            finally:
                # Close it even after an error: the blocks belong to the model, and later engines need them.
                engine.close()

    def _new_engine(self, metrics: RunMetrics | None) -> BaseEngine:
        settings = self.source.config
        return Engine(
            self.stepper,
            max_sequences=self.max_sequences,
            max_batch_tokens=settings.engine.max_batch_tokens,
            prefix_cache=settings.engine.prefix_cache,
            metrics=metrics,
            lookup=settings.engine.speculation in ("lookup", "auto"),
        )

    def close(self) -> None:
        """Releases the other ranks, if there are any. The model cannot compute afterwards."""
        if self._let_go is not None:
            self._let_go()

    def describe_cache(self) -> str:
        """Describes the size of the KV cache in a line for the user."""
        settings, runner = self.source.config.engine, self.runner
        size = runner.blocks.capacity * kv_cache.block_bytes(runner.config, runner.block_size, runner.cache_dtype)
        why = "as engine.kv_cache_memory says" if settings.kv_cache_memory is not None else "sized to work and memory"
        return (
            f"KV cache: {runner.blocks.capacity * runner.block_size:,} positions, {size / 2**20:,.0f} MiB, {why}; "
            f"at most {self.max_sequences} rows at once"
        )

    def encoder(self, tokenizer: Tokenizer, **settings: Any) -> Encoder:
        """Returns an encoder for this model; generation `settings` override the model's own."""
        generation = with_ends(self.source, tokenizer, self.generation_config)
        return make_encoder(self.source, tokenizer, generation.updated(**settings))

    def generate(
        self,
        input_ids: Sequence[int] | Sequence[Sequence[int]] | np.ndarray,
        generation_config: GenerationConfig | None = None,
        streamer: Any = None,
        *,
        attention_mask: Any = None,
        valid_length: Any = None,
        **settings: Any,
    ) -> list[list[int]]:
        """Continues prompts of token ids; rows may differ in length.

        Args:
            input_ids: one prompt, or several; or a tokenizer's output, with its attention_mask. Rows that begin
                or end with pad_token_id lose it, unless it is a token of its own.
            generation_config: replaces the model's own settings.
            streamer: receives the ids of each prompt and its answer through `put`, and `end` when its row ends: the
                rows one after the other; or a list with a streamer for each row.
            attention_mask: for each row 1 for a token and 0 for padding.
            valid_length: for each row its length without padding on the right.
            settings: settings to override, such as max_new_tokens.

        Returns:
            For each prompt, its ids followed by those of its answer; several answers (`num_return_sequences`) follow
            one another, as in transformers.

        Raises:
            ConfigError: a setting is unknown.
            InputError: a prompt is empty or does not fit the context.
        """
        streams = None if streamer is None else IdStreams(streamer)
        try:
            generation = (generation_config or self.generation_config).updated(**settings)
            if attention_mask is None and isinstance(input_ids, Mapping):
                attention_mask = input_ids.get("attention_mask")
            rows = unpadded(_rows(input_ids), generation, attention_mask, valid_length)
            return self._generate(rows, generation, streams)
        finally:
            # End it even after an error, so that no consumer waits forever.
            if streams is not None:
                streams.close()

    def _generate(
        self, rows: list[list[int]], generation: GenerationConfig, streams: IdStreams | None
    ) -> list[list[int]]:
        if not rows:
            raise InputError("generate was given no prompt", "give token ids, or rows of them")
        if streams is not None and not streams.is_single and len(streams) != len(rows):
            raise InputError(f"{len(streams)} streamers for {len(rows)} prompts", "give one for each, or a single one")
        if generation.stop:
            raise InputError("stop strings need a tokenizer, generate has none", "use pipeline")
        prompts = [Prompt(str(row), f"row {row}", token_ids=tuple(ids)) for row, ids in enumerate(rows)]
        encoder = make_encoder(self.source, None, generation)
        encoded = [sample for prompt in encoder.encode_all(prompts) for sample in prompt.samples]
        requests = [sample.request(self.config.context_length) for sample in encoded]
        for row, ids in enumerate(rows if streams is not None else ()):
            assert streams is not None
            streams.prompt(row, ids)
        # Of several answers to a prompt, the first one is streamed.
        running = [
            _Tokens(request, int(sample.prompt.custom_id) if not sample.sample else None)
            for request, sample in zip(requests, encoded, strict=True)
        ]
        for delivery in self.background.stream(running, len(requests), every_token=streams is not None):
            delivery.unwrap()
            shown = delivery.row
            assert isinstance(shown, _Tokens)
            if streams is not None and shown.shown_as is not None:
                streams.tokens(shown.shown_as, shown.request.output_ids[: shown.taken])
                if delivery.last:
                    streams.finish(shown.shown_as)
        return [request.prompt_ids + request.output_ids for request in requests]

    def answer(
        self,
        prompts: Iterable[EncodedPrompt],
        tokenizer: Tokenizer,
        streamer: BaseStreamer | SeparateStreamers | IdStreams | None = None,
        return_errors: bool = False,
    ) -> list[list[str] | InferenceError]:
        """Returns the texts of every prompt's answers, in the order of the prompts.

        Args:
            streamer: receives the text or the ids of each prompt's first answer as it is generated.
            return_errors: if a prompt cannot run or the model fails on it, return the error in place of its texts
                instead of raising it.
        """
        found: dict[int, list[str] | InferenceError] = {}
        sources, gatherer = list(prompts), SampleGatherer()
        try:
            if streamer is not None:
                for source in sources:
                    if isinstance(streamer, IdStreams):
                        streamer.prompt(source.row, source.ids)
                    else:
                        streamer.prompt(source.row, source.text if source.decoder_start is None else "")
            rows = [self.row(sample, tokenizer) for source in sources for sample in source.samples]
            for delivery in self.background.stream(rows, len(rows), every_token=streamer is not None):
                assert isinstance(delivery.row, AnswerRow)
                answer = delivery.row.answer
                if return_errors and isinstance(delivery.error, (InputError, GenerationError)):
                    found[answer.row] = delivery.error
                else:
                    event = delivery.unwrap()
                    if isinstance(streamer, IdStreams):
                        if not answer.source.sample:
                            streamer.tokens(answer.row, list(answer.request.output_ids))
                    elif streamer is not None and not answer.source.sample:
                        streamer.write(answer.row, event.text)
                    whole = gatherer.take(answer) if event.finished else None
                    if whole is not None:
                        found[whole.row] = whole.texts
                if delivery.last and not answer.source.sample and streamer is not None:
                    streamer.finish(answer.row)
        finally:
            if streamer is not None:
                streamer.close()
        return [found[source.row] for source in sources]

    def row(self, source: EncodedPrompt, tokenizer: Tokenizer) -> AnswerRow:
        """Makes a row for `background` from a prompt."""
        return AnswerRow.begin(source, source.request(self.config.context_length), tokenizer)


# The id of the first process that loaded a model; forks inherit it.
_loaded_in: list[int] = []


def check_no_fork() -> None:
    """Refuses to load a model in a fork of a process that has loaded one.

    Raises:
        InferenceError: this process is a fork of one that loaded a model.
    """
    if not _loaded_in:
        _loaded_in.append(os.getpid())
    check_process(_loaded_in[0])


@dataclass(eq=False)
class _Tokens:
    """A row whose events are its token ids.

    Args:
        shown_as: its number among the streamed rows; None if it is not streamed.
    """

    request: Request
    shown_as: int | None = None
    taken: int = 0

    def advance(self, engine: BaseEngine) -> list[int]:
        fresh = self.request.output_ids[self.taken :]
        self.taken += len(fresh)
        return fresh


def make_encoder(
    source: ModelSource, tokenizer: Tokenizer | None, generation: GenerationConfig | None = None
) -> Encoder:
    """Returns the encoder of a model, with the model's own generation settings unless others are given."""
    if generation is None:
        generation = with_ends(source, tokenizer, source.generation)
    settings = source.config
    names = settings.adapter_id or ()
    return Encoder(
        tokenizer,
        source.model.vocab_size,
        source.model.context_length,
        generation,
        chat=settings.processor.chat,
        truncate=settings.engine.truncate,
        decoder_start=source.model.decoder_start,
        adapters=source.adapters.numbers,
        adapter_ids=names if len(names) > 1 else (),
        template_variables=settings.processor.chat_template_kwargs or {},
    )


def _rows(input_ids: Any) -> list[list[int]]:
    if isinstance(input_ids, Mapping):
        input_ids = input_ids["input_ids"]
    if hasattr(input_ids, "asnumpy"):
        input_ids = input_ids.asnumpy()
    if isinstance(input_ids, np.ndarray):
        input_ids = input_ids.tolist()
    rows: list[Any] = [input_ids] if isinstance(input_ids, str) else list(input_ids)
    if rows and not isinstance(rows[0], (list, tuple, np.ndarray)):
        rows = [rows]
    try:
        return [[operator.index(token) for token in row] for row in rows]
    except TypeError:
        raise InputError("generate takes token ids", "for texts use LLM or pipeline, for messages LLM.chat") from None
