"""Which sequences go through the model in the next step, and which blocks of the KV cache are whose.

Touches no tensors: a plan is a list of (request, number of tokens). Waiting requests join whenever there is room;
long prompts go in chunks beside the rows that decode; when blocks run out, the youngest row gives its own back and is
computed again later, so the oldest always gets on and nothing can deadlock.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from inference.errors import InputError
from inference.request import Request

# Never given to a sequence: tables are padded with it.
NULL_BLOCK = 0


class BlockPool:
    """Blocks of the KV cache that no sequence holds."""

    def __init__(self, num_blocks: int, block_size: int):
        if num_blocks < 2:
            raise ValueError("a cache needs a block beside the null block")
        self.block_size = block_size
        self.capacity = num_blocks - 1
        self._free = list(range(num_blocks - 1, NULL_BLOCK, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def blocks_for(self, tokens: int) -> int:
        """Blocks that `tokens` positions take."""
        return -(-tokens // self.block_size)

    def grow(self, table: list[int], tokens: int) -> bool:
        """Extends `table` to hold `tokens` positions; False, and no change, where too few blocks are free."""
        needed = self.blocks_for(tokens) - len(table)
        if needed > len(self._free):
            return False
        table.extend(self._free.pop() for _ in range(needed))
        return True

    def release(self, table: list[int]) -> None:
        """Takes all blocks of `table` back."""
        self._free.extend(reversed(table))
        table.clear()


@dataclass(frozen=True)
class Scheduled:
    """`count` tokens of a request, from its first that is not cached, go through the model now."""

    request: Request
    count: int

    @property
    def reaches_end(self) -> bool:
        """Whether the next token can be chosen after this step."""
        return self.count == self.request.num_uncached


class Scheduler:
    """Queues and block accounting.

    Args:
        num_blocks: blocks of the KV cache, the null block included.
        block_size: positions a block.
        max_sequences: the most rows in a step.
        max_batch_tokens: the most tokens in a step.
    """

    def __init__(self, num_blocks: int, block_size: int, max_sequences: int, max_batch_tokens: int):
        self.pool = BlockPool(num_blocks, block_size)
        self.max_sequences = max_sequences
        self.max_batch_tokens = max(max_batch_tokens, max_sequences)
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []

    @property
    def capacity(self) -> int:
        """The most tokens that one sequence can hold in the cache."""
        return self.pool.capacity * self.pool.block_size

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, request: Request) -> None:
        """Queues a request.

        Raises:
            InputError: its prompt and answer together could never fit into the cache.
        """
        # The last token that is chosen never enters the cache.
        needed = len(request.prompt_ids) + request.max_new_tokens - 1
        if needed > self.capacity:
            raise InputError(
                f"request {request.request_id} needs {needed} positions of KV cache, there are {self.capacity}",
                "lower max_new_tokens or raise engine.kv_cache_memory",
            )
        self.waiting.append(request)

    def plan(self) -> list[Scheduled]:
        """The next step's work: rows that run first, oldest first, then as many waiting ones as fit."""
        budget = self.max_batch_tokens
        planned: list[Scheduled] = []
        waiting = len(self.waiting)
        index = 0
        while index < len(self.running):
            request = self.running[index]
            index += 1
            # Every row still to come is left at least a token, so that a long prompt stalls nobody.
            count = min(request.num_uncached, budget - (len(self.running) - index))
            if not self._make_room(request, request.num_cached + count):
                break
            planned.append(Scheduled(request, count))
            budget -= count
        # A step that put a row back lets none in: the room would be gone in the next one.
        admits = len(self.waiting) == waiting
        while admits and self.waiting and budget > 0 and len(self.running) < self.max_sequences:
            request = self.waiting[0]
            count = min(request.num_uncached, budget)
            if not self.pool.grow(request.block_table, request.num_cached + count):
                break
            self.running.append(self.waiting.popleft())
            planned.append(Scheduled(request, count))
            budget -= count
        return planned

    def finish(self, request: Request) -> None:
        """Forgets a request, wherever it is, and takes its blocks back."""
        if request in self.running:
            self.running.remove(request)
        elif request in self.waiting:
            self.waiting.remove(request)
        self.pool.release(request.block_table)

    def _make_room(self, request: Request, tokens: int) -> bool:
        """Grows the request's table, taking blocks from the youngest rows; False if it was itself put back."""
        while not self.pool.grow(request.block_table, tokens):
            youngest = self.running.pop()
            self.pool.release(youngest.block_table)
            youngest.num_cached = 0
            self.waiting.appendleft(youngest)
            if youngest is request:
                return False
        return True
