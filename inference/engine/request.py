"""One sequence: its prompt, settings, progress through the cache, and answer.

Plain data; knows nothing about text, tensors or scheduling.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inference.config import GenerationConfig
    from inference.engine.constraint import TokenConstraint
    from inference.engine.processors import Processor
    from inference.engine.speculation import Lookup
    from inference.engine.token_counts import TokenCounts
    from inference.errors import InferenceError


class FinishReason(str, Enum):
    """Why an answer ended."""

    STOP = "stop"
    """An end-of-sequence token or a stop string."""
    LENGTH = "length"
    """The limit of new tokens, or the end of the model's context, was reached."""
    CANCELLED = "cancelled"
    """The caller cancelled it."""
    ERROR = "error"
    """It failed; its `error` says why."""


@dataclass(frozen=True)
class TokenLogprob:
    """Natural log probability of a chosen token, before any sampling filter, and those of the likeliest tokens."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def cache_key_of(adapter: int) -> bytes:
    """Returns the cache key of requests that an adapter answers; 0 for none."""
    return str(adapter).encode() if adapter else b""


@dataclass
class Timing:
    """Points in time, in `time.perf_counter()` seconds; None if not reached yet."""

    arrived: float = field(default_factory=time.perf_counter)
    first_token: float | None = None
    finished: float | None = None

    @property
    def ttft(self) -> float | None:
        """Time to first token, seconds."""
        return None if self.first_token is None else self.first_token - self.arrived

    @property
    def total(self) -> float | None:
        """Time from arrival to the last token, seconds."""
        return None if self.finished is None else self.finished - self.arrived


@dataclass(eq=False)
class Request:
    """A prompt and its answer in progress.

    Args:
        request_id: unique within an engine.
        prompt_ids: the prompt's token ids, at least one; for a model with an encoder, the token that begins an answer.
        generation: the generation settings.
        max_new_tokens: maximum number of tokens to generate; already limited to the model's context.
        min_new_tokens: minimum number of tokens before an end-of-sequence token may be chosen.
        seed: the seed of sampling. The engine derives it from the settings' seed, the row and the sample, or draws one.
        adapter: number of its adapter in the model; 0 for none.
        cache_key: identifies everything that keys and values depend on besides the tokens, such as the adapter;
            requests with different cache keys share no blocks.
        source_ids: token ids that the encoder reads; None for models without one.
        row: its index in the run; part of its seed, so that equal prompts get different samples.
        sample: its number among the samples of its prompt.
        constraint: decides which tokens may come next, such as a grammar.
    """

    request_id: str
    prompt_ids: list[int]
    generation: GenerationConfig
    max_new_tokens: int
    min_new_tokens: int = 0
    seed: int = 0
    adapter: int = 0
    cache_key: bytes = b""
    source_ids: list[int] | None = None
    row: int = 0
    sample: int = 0
    constraint: TokenConstraint | None = None
    processors: tuple[Processor, ...] | None = None
    """The logits processors that the settings enable; None before the first token."""
    seen: TokenCounts | None = None
    """Token counts of prompt and answer; None until a penalty needs them."""
    generated: TokenCounts | None = None
    """Token counts of the answer; None until a penalty needs them."""
    lookup: Lookup | None = None
    """The index of its text for prompt lookup (speculation)."""
    output_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: InferenceError | None = None
    block_table: list[int] = field(default_factory=list)
    source_table: list[int] = field(default_factory=list)
    """The blocks of the source; empty before it is encoded."""
    num_cached: int = 0
    """Tokens whose keys and values are in the cache."""
    block_hashes: list[bytes] = field(default_factory=list)
    """Hashes of the first full blocks of prompt and answer, as many as the scheduler has needed."""
    num_reused: int = 0
    """Tokens of the prompt that were in the cache before the request arrived."""
    times_put_back: int = 0
    """How often it was preempted: its blocks went to an older row."""
    timing: Timing = field(default_factory=Timing)

    @property
    def num_tokens(self) -> int:
        """Number of tokens of the prompt and the answer so far."""
        return len(self.prompt_ids) + len(self.output_ids)

    @property
    def num_uncached(self) -> int:
        """Tokens that must still go through the model before the next one can be chosen."""
        return len(self.prompt_ids) + len(self.output_ids) - self.num_cached

    @property
    def most_cached(self) -> int:
        """Maximum number of its tokens in the cache, where the last chosen token is never written."""
        return len(self.prompt_ids) + self.max_new_tokens - 1

    @property
    def source_length(self) -> int:
        """Tokens of the source."""
        return len(self.source_ids or ())

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the input: of the source if there is one, otherwise of the prompt."""
        return len(self.prompt_ids) if self.source_ids is None else len(self.source_ids)

    def most_blocks(self, block_size: int) -> int:
        """Returns the maximum number of cache blocks that it can hold."""
        return -(-self.source_length // block_size) + -(-self.most_cached // block_size)

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def answer_ids(self) -> list[int]:
        """The tokens of the answer, without the one that ended it."""
        ended = (
            self.finish_reason is FinishReason.STOP
            and not self.generation.ignore_eos
            and self.output_ids
            and self.output_ids[-1] in self.generation.eos_token_id
        )
        return self.output_ids[:-1] if ended else self.output_ids

    def tokens(self, start: int, count: int) -> list[int]:
        """Returns `count` tokens of prompt and answer together, starting at position `start`."""
        prompt = len(self.prompt_ids)
        if start >= prompt:
            return self.output_ids[start - prompt : start - prompt + count]
        return (self.prompt_ids[start : start + count] + self.output_ids)[:count]

    def append(self, token_id: int) -> None:
        """Appends the next token, and records the time of the first."""
        self.output_ids.append(token_id)
        if self.constraint is not None:
            self.constraint.advance(token_id)
        if self.timing.first_token is None:
            self.timing.first_token = time.perf_counter()

    def finish(self, reason: FinishReason) -> None:
        self.finish_reason = reason
        self.timing.finished = time.perf_counter()
