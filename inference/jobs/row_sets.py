"""Compact sets and tables of rows, for any number of rows and any row numbers.

Knows numbers and hashes; knows nothing about rows.
"""

from __future__ import annotations

from array import array
from hashlib import blake2b

_EMPTY = 0
# Numbers per block; a set or table allocates only the blocks that it uses.
BLOCK = 1 << 16


class NumberSet:
    """A set of integers from 0, one bit each, in blocks of `BLOCK`."""

    def __init__(self) -> None:
        self._blocks: dict[int, bytearray] = {}
        self._count = 0

    def add(self, number: int) -> bool:
        """Adds a number; returns False if it was already present."""
        block, place = divmod(number, BLOCK)
        bits = self._blocks.get(block)
        if bits is None:
            bits = self._blocks[block] = bytearray(BLOCK >> 3)
        byte, bit = place >> 3, 1 << (place & 7)
        if bits[byte] & bit:
            return False
        bits[byte] |= bit
        self._count += 1
        return True

    def __contains__(self, number: int) -> bool:
        block, place = divmod(number, BLOCK)
        bits = self._blocks.get(block)
        return bits is not None and bool(bits[place >> 3] & 1 << (place & 7))

    def __len__(self) -> int:
        return self._count


class NumberTable:
    """A table that maps integers from 0 to signed 64-bit integers, in blocks of `BLOCK`.

    Args:
        default: the value of a number that has not been set.
    """

    def __init__(self, default: int):
        self._default = default
        self._blocks: dict[int, array[int]] = {}

    def __setitem__(self, number: int, value: int) -> None:
        block, place = divmod(number, BLOCK)
        if block not in self._blocks:
            self._blocks[block] = array("q", [self._default]) * BLOCK
        self._blocks[block][place] = value

    def __getitem__(self, number: int) -> int:
        block, place = divmod(number, BLOCK)
        values = self._blocks.get(block)
        return self._default if values is None else values[place]

    def numbers(self) -> list[int]:
        """The first number of each block, in order."""
        return sorted(block * BLOCK for block in self._blocks)


class NameSet:
    """A set of names, stored as 64-bit hashes in a table that is at most 3/5 full: 13 to 27 bytes per name.

    Among ten million names, two have the same hash with a probability of 3e-6.
    """

    def __init__(self) -> None:
        self._table = array("Q", bytes(8 * 1024))
        self._count = 0

    def add(self, name: str) -> bool:
        """Adds a name; returns False if it was already present."""
        if not self._put(_hash(name)):
            return False
        self._count += 1
        if self._count > len(self._table) * 3 // 5:
            old, self._table = self._table, array("Q", bytes(16 * len(self._table)))
            for value in old:
                if value != _EMPTY:
                    self._put(value)
        return True

    def __len__(self) -> int:
        return self._count

    def _put(self, value: int) -> bool:
        table = self._table
        mask = len(table) - 1
        place = value & mask
        while table[place] != _EMPTY:
            if table[place] == value:
                return False
            place = (place + 1) & mask
        table[place] = value
        return True


def fingerprint(text: str) -> int:
    """A 63-bit hash that is never 0."""
    return (_hash(text) >> 1) or 1


def _hash(name: str) -> int:
    digest = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1
