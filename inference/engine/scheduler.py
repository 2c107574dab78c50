"""Chooses which sequences go through the model in the next step, and assigns the blocks of the KV cache.

Touches no tensors: a plan is a list of (request, number of tokens). Waiting requests join whenever there is room. Long
prompts run in chunks beside the rows that decode. When blocks run out, the youngest row is preempted: it frees its
blocks and is recomputed later, so the oldest row always makes progress and nothing can deadlock. A request
that shares a prefix with an earlier one reuses the blocks of that prefix.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from inference.engine.request import Request
from inference.errors import InputError
from inference.models.block_pool import BlockPool, chain

# A waiting row joins if it and every running row can still grow by this many blocks: a row that joins too early is
# preempted at once and recomputed. In a simulation of 300 rows with cache for a few of them, 2 took the least time;
# with 0, seven times as many tokens were computed twice.
ROOM = 2


@dataclass(eq=False, slots=True)
class Scheduled:
    """A part of a step: `count` tokens of a request, starting at its first uncached one.

    Args:
        copy: a block, and the block to copy its content into before the step.
        encodes: run the request's source through the encoder first.
        guesses: tokens that may follow, to check in the same step; `count` does not include them.
    """

    request: Request
    count: int
    copy: tuple[int, int] | None = None
    encodes: bool = False
    guesses: Sequence[int] = ()

    @property
    def tokens(self) -> int:
        """Tokens that are computed, including those of the source and the guesses."""
        return self.count + len(self.guesses) + (self.request.source_length if self.encodes else 0)

    @property
    def reaches_end(self) -> bool:
        """Whether the next token can be chosen after this step."""
        return self.count == self.request.num_uncached


class Scheduler:
    """Queues and block accounting.

    Args:
        pool: the blocks of the model's KV cache.
        max_sequences: maximum number of rows in a step.
        max_batch_tokens: maximum number of tokens in a step.
        prefix_cache: share the blocks of common prefixes.
        guess: given a request, the number of rows that decode and the most tokens to return, returns tokens that may
            follow the request's newest one; None to make no guesses.
    """

    def __init__(
        self,
        pool: BlockPool,
        max_sequences: int,
        max_batch_tokens: int,
        prefix_cache: bool = True,
        guess: Callable[[Request, int, int], Sequence[int]] | None = None,
    ):
        self.pool = pool
        self.guess = guess
        self.max_sequences = max_sequences
        self.max_batch_tokens = max(max_batch_tokens, max_sequences)
        self.prefix_cache = prefix_cache
        # Both in the order of arrival; dicts, because any row can be removed.
        self.waiting: OrderedDict[Request, None] = OrderedDict()
        self.running: dict[Request, None] = {}

    @property
    def capacity(self) -> int:
        """Maximum number of tokens of one sequence that fit into the cache."""
        return self.pool.capacity * self.pool.block_size

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, request: Request) -> None:
        """Queues a request.

        Raises:
            InputError: its prompt and answer together can never fit into the cache.
        """
        block_size = self.pool.block_size
        needed = request.source_length + request.most_cached
        if request.most_blocks(block_size) > self.pool.capacity:
            raise InputError(
                f"request {request.request_id} needs {needed} positions of KV cache, there are {self.capacity}",
                "lower max_new_tokens or raise engine.kv_cache_memory",
            )
        self.waiting[request] = None

    def plan(self) -> list[Scheduled]:
        """Plans the next step: running rows, the oldest first, then as many waiting ones as fit."""
        budget = self.max_batch_tokens
        block_size = self.pool.block_size
        planned: list[Scheduled] = []
        rows = list(self.running)
        for index, request in enumerate(rows, 1):
            # Leave at least one token for each remaining row, so that a long prompt stalls no other row.
            count = min(request.num_uncached, budget - (len(self.running) - index))
            end = request.num_cached + count
            if end > len(request.block_table) * block_size and not self._make_room(request, end):
                break
            planned.append(Scheduled(request, count))
            budget -= count
            if index == len(self.running):
                break
        is_full = not self.waiting or len(self.running) >= self.max_sequences
        if self.guess is not None and is_full and len(planned) == len(self.running):
            budget = self._add_guesses(planned, budget)
        # Admit no row in a step that preempted one.
        if len(self.running) == len(rows) and self.waiting:
            self._admit(planned, budget)
        return planned

    def _add_guesses(self, planned: list[Scheduled], budget: int) -> int:
        """Adds guesses to decoding rows, with blocks and tokens that no other row needs; returns the budget left."""
        assert self.guess is not None
        # A step with prompt tokens is compute-bound already, so guesses would cost time.
        if any(item.count > 1 for item in planned):
            return budget
        for item in planned:
            guesses = self.guess(item.request, len(planned), budget)
            request = item.request
            if guesses and self.pool.grow(request.block_table, request.num_cached + 1 + len(guesses)):
                item.guesses = guesses
                budget -= len(guesses)
        return budget

    def advance(self, item: Scheduled) -> None:
        """Records that an item of the plan was computed: its blocks that are now full can be shared."""
        request, block_size = item.request, self.pool.block_size
        first = request.num_cached // block_size
        request.num_cached += item.count
        full = request.num_cached // block_size
        if full > first and self._shares(request):
            hashes = self._hashes(request, full)
            for index in range(first, full):
                self.pool.publish(request.block_table[index], hashes[index])

    def finish(self, request: Request) -> None:
        """Removes a request, running or waiting, and releases its blocks."""
        self.running.pop(request, None)
        self.waiting.pop(request, None)
        self._release(request)

    def discard(self, request: Request) -> None:
        """Removes a failed request: later requests must not share the blocks that it computed."""
        self.pool.retract(request.block_table[request.num_reused // self.pool.block_size :])
        self.finish(request)

    def _make_room(self, request: Request, tokens: int) -> bool:
        """Grows the request's block table, preempting the youngest rows; False if the request itself was preempted."""
        while not self.pool.grow(request.block_table, tokens):
            youngest, _ = self.running.popitem()
            self._release(youngest)
            youngest.num_cached = 0
            youngest.times_put_back += 1
            self.waiting[youngest] = None
            self.waiting.move_to_end(youngest, last=False)
            if youngest is request:
                return False
        return True

    def _release(self, request: Request) -> None:
        self.pool.release(request.block_table)
        self.pool.release(request.source_table)

    def _admit(self, planned: list[Scheduled], budget: int) -> None:
        """Admits waiting requests in the order of arrival, as long as there are rows, tokens and blocks."""
        if budget <= 0 or len(self.running) >= self.max_sequences:
            return
        computing = self._computing(planned)
        encoding = False
        while self.waiting and budget > 0 and len(self.running) < self.max_sequences:
            request = next(iter(self.waiting))
            # A source is encoded in one piece: the first in a step regardless of its length, others only if they fit.
            if encoding and request.source_length >= budget:
                return
            item = self._begin(request, max(1, budget - request.source_length), computing)
            if item is None:
                return
            self.waiting.popitem(last=False)
            self.running[item.request] = None
            planned.append(item)
            computing |= self._computing([item])
            budget -= item.tokens
            encoding |= item.encodes

    def _begin(self, request: Request, budget: int, computing: set[bytes]) -> Scheduled | None:
        """Gives a waiting request its first blocks; returns None, changing nothing, if it should keep waiting."""
        pool = self.pool
        shares = self._shares(request)
        hashes = self._hashes(request, request.num_tokens // pool.block_size) if shares else []
        found = pool.find(hashes)
        if len(found) < len(hashes) and hashes[len(found)] in computing:
            # Another row computes the very next block in this step.
            return None
        # The last token must go through the model in any case: its logits choose the next one.
        reused = min(len(found) * pool.block_size, request.num_tokens - 1)
        # It is then written into the last reused block, which must not change for other requests.
        written = reused < len(found) * pool.block_size
        copied = written and pool.is_held(found[-1])
        if self.running:
            needed = self._growth(request) - len(found) + copied
            free = pool.num_free - sum(not pool.is_held(block) for block in found)
            if needed + sum(map(self._growth, self.running)) > free:
                return None
        if not request.times_put_back:
            request.num_reused = min(reused, len(request.prompt_ids))
        count = min(request.num_tokens - reused, budget)
        grown = pool.grow(request.source_table, request.source_length)
        assert grown, "a request that fits into the cache finds room when no other runs"
        pool.hold(request.block_table, found[:-1] if copied else found)
        if written and not copied:
            pool.withdraw(found[-1])
        grown = pool.grow(request.block_table, reused + count)
        assert grown, "a request that fits into the cache finds room when no other runs"
        request.num_cached = reused
        copy = (found[-1], request.block_table[len(found) - 1]) if copied else None
        return Scheduled(request, count, copy, encodes=request.source_ids is not None)

    def _growth(self, request: Request) -> int:
        """Returns the blocks that a row still needs to hold all its tokens and `ROOM` blocks more, or to finish."""
        ahead = min(request.num_tokens + ROOM * self.pool.block_size, request.most_cached)
        missing = self.pool.blocks_for(request.source_length) - len(request.source_table)
        return missing + self.pool.blocks_for(ahead) - len(request.block_table)

    def _computing(self, planned: list[Scheduled]) -> set[bytes]:
        """Returns the hashes of the prompt blocks that this step computes."""
        block_size, keys = self.pool.block_size, set()
        for item in planned:
            request = item.request
            if request.num_cached < len(request.prompt_ids) and self._shares(request):
                first, last = request.num_cached // block_size, (request.num_cached + item.count - 1) // block_size
                keys.update(self._hashes(request, request.num_tokens // block_size)[first : last + 1])
        return keys

    def _shares(self, request: Request) -> bool:
        # Without use_past every step recomputes the request; a decoder's keys and values depend on its source.
        return self.prefix_cache and request.generation.use_past and request.source_ids is None

    def _hashes(self, request: Request, count: int) -> list[bytes]:
        """Returns the hashes of the request's first blocks, at least `count`; each is computed once."""
        hashes, size = request.block_hashes, self.pool.block_size
        for index in range(len(hashes), count):
            parent = hashes[-1] if hashes else request.cache_key
            hashes.append(chain(parent, request.tokens(index * size, size)))
        return hashes
