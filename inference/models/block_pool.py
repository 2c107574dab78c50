"""Blocks of the KV cache: who holds which, and what those hold that nobody has any more.

A full block is published under a hash of all tokens up to its end, and of whatever else decides keys and values, so
that a block found by its hash stands for its whole past. Published blocks are never written. One that nobody holds
stays findable until its memory is needed; the least recently used goes first. Touches no tensors.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

# Never given to a sequence: tables are padded with it.
NULL_BLOCK = 0
HASH_BYTES = 16


def chain(parent: bytes, tokens: Sequence[int]) -> bytes:
    """The hash of a block of `tokens` that follows what `parent` stands for."""
    return blake2b(parent + array("q", tokens).tobytes(), digest_size=HASH_BYTES).digest()


class BlockPool:
    """All blocks of one cache. It lives as long as the cache: what was computed once is found by later requests.

    Args:
        num_blocks: the null block included.
        block_size: positions a block.
    """

    def __init__(self, num_blocks: int, block_size: int):
        if num_blocks < 2:
            raise ValueError("a cache needs a block beside the null block")
        self.block_size = block_size
        self.capacity = num_blocks - 1
        self._free = list(range(num_blocks - 1, NULL_BLOCK, -1))
        # Published and held by nobody, the least recently used first.
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._holders = [0] * num_blocks
        self._hash_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free) + len(self._idle)

    @property
    def num_published(self) -> int:
        """Blocks that can be found by their hash."""
        return len(self._block_of)

    def blocks_for(self, tokens: int) -> int:
        """Blocks that `tokens` positions take."""
        return -(-tokens // self.block_size)

    def grow(self, table: list[int], tokens: int) -> bool:
        """Extends `table` to hold `tokens` positions; False, and no change, where too few blocks are free."""
        needed = self.blocks_for(tokens) - len(table)
        if needed > self.num_free:
            return False
        for _ in range(needed):
            table.append(self._take())
        return True

    def release(self, table: list[int]) -> None:
        """Gives up one hold on each block of `table`, and empties it."""
        # The end of a sequence is found only through its beginning, so it is the first to go.
        for block in reversed(table):
            self._holders[block] -= 1
            if self._holders[block] == 0:
                if block in self._hash_of:
                    self._idle[block] = None
                else:
                    self._free.append(block)
        table.clear()

    def find(self, hashes: Iterable[bytes]) -> list[int]:
        """The published blocks of the longest beginning of `hashes`."""
        found = []
        for key in hashes:
            block = self._block_of.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def is_held(self, block: int) -> bool:
        """Whether any sequence holds the block."""
        return self._holders[block] > 0

    def hold(self, table: list[int], blocks: Iterable[int]) -> None:
        """Adds blocks that `find` gave to a table."""
        for block in blocks:
            if self._holders[block] == 0:
                del self._idle[block]
            self._holders[block] += 1
            table.append(block)

    def publish(self, block: int, key: bytes) -> None:
        """Makes a block that is full findable; of two with the same content the first stays the one that is found."""
        if key not in self._block_of:
            self._block_of[key] = block
            self._hash_of[block] = key

    def withdraw(self, block: int) -> None:
        """Makes a block findable no more, since its holder is about to write into it."""
        del self._block_of[self._hash_of.pop(block)]

    def retract(self, blocks: Iterable[int]) -> None:
        """Makes those of the blocks that can be found findable no more; whoever holds them keeps them."""
        for block in blocks:
            if block in self._hash_of:
                self.withdraw(block)

    def forget(self) -> None:
        """Makes nothing findable any more: somebody writes into the cache past this pool."""
        self._free.extend(reversed(self._idle))
        self._idle.clear()
        self._hash_of.clear()
        self._block_of.clear()

    def _take(self) -> int:
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._idle.popitem(last=False)
            self.withdraw(block)
        self._holders[block] = 1
        return block
