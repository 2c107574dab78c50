"""The blocks of the KV cache: which are held, and which cached contents can still be reused.

A full block is published under a hash of all tokens up to its end, and of everything else that determines keys and
values. A block found by its hash therefore matches the whole prefix. Published blocks are never written. A published
block that no sequence holds can be found until its memory is needed; the least recently used is evicted first. Touches
no tensors.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

# Never allocated to a sequence: block tables are padded with it.
NULL_BLOCK = 0
HASH_BYTES = 16


def chain(parent: bytes, tokens: Sequence[int]) -> bytes:
    """Returns the hash of a block of `tokens` that follows the block with the hash `parent`."""
    return blake2b(parent + array("q", tokens).tobytes(), digest_size=HASH_BYTES).digest()


class BlockPool:
    """All blocks of one cache. It lives as long as the cache, so that later requests find earlier results.

    Args:
        num_blocks: number of blocks, including the null block.
        block_size: positions per block.
    """

    def __init__(self, num_blocks: int, block_size: int):
        if num_blocks < 2:
            raise ValueError("a cache needs a block beside the null block")
        self.block_size = block_size
        self.capacity = num_blocks - 1
        self._free = list(range(num_blocks - 1, NULL_BLOCK, -1))
        # Published blocks that no sequence holds, the least recently used first.
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._holders = [0] * num_blocks
        self._hash_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Number of blocks that no sequence holds."""
        return len(self._free) + len(self._idle)

    @property
    def num_published(self) -> int:
        """Number of blocks that can be found by their hash."""
        return len(self._block_of)

    def blocks_for(self, tokens: int) -> int:
        """Returns the number of blocks that `tokens` positions need."""
        return -(-tokens // self.block_size)

    def grow(self, table: list[int], tokens: int) -> bool:
        """Extends `table` to hold `tokens` positions; returns False and changes nothing if too few blocks are free."""
        needed = self.blocks_for(tokens) - len(table)
        if needed > self.num_free:
            return False
        for _ in range(needed):
            table.append(self._take())
        return True

    def release(self, table: list[int]) -> None:
        """Releases each block of `table` once, and empties the table."""
        # Later blocks can be found only through earlier ones, so evict them first.
        for block in reversed(table):
            self._holders[block] -= 1
            if self._holders[block] == 0:
                if block in self._hash_of:
                    self._idle[block] = None
                else:
                    self._free.append(block)
        table.clear()

    def find(self, hashes: Iterable[bytes]) -> list[int]:
        """Returns the blocks of the longest prefix of `hashes` that is published."""
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
        """Adds blocks that `find` returned to a table."""
        for block in blocks:
            if self._holders[block] == 0:
                del self._idle[block]
            self._holders[block] += 1
            table.append(block)

    def publish(self, block: int, key: bytes) -> None:
        """Makes a full block findable; if two blocks have the same contents, `find` keeps returning the first."""
        if key not in self._block_of:
            self._block_of[key] = block
            self._hash_of[block] = key

    def withdraw(self, block: int) -> None:
        """Unpublishes a block, because the sequence that holds it is about to write into it."""
        del self._block_of[self._hash_of.pop(block)]

    def retract(self, blocks: Iterable[int]) -> None:
        """Unpublishes those of the blocks that are published; sequences that hold them keep them."""
        for block in blocks:
            if block in self._hash_of:
                self.withdraw(block)

    def forget(self) -> None:
        """Unpublishes all blocks, because something bypasses this pool and writes into the cache."""
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
