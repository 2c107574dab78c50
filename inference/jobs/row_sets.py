"""Sets of rows that stay small however many rows there are.

Knows numbers and hashes; knows nothing about rows.
"""

from __future__ import annotations

from array import array
from hashlib import blake2b

_EMPTY = 0


class NumberSet:
    """Numbers from 0, a bit for each up to the greatest."""

    def __init__(self) -> None:
        self._bits = bytearray()
        self._count = 0

    def add(self, number: int) -> bool:
        """Adds a number; False if it was there."""
        byte, bit = number >> 3, 1 << (number & 7)
        if byte >= len(self._bits):
            self._bits.extend(bytes(byte + 1 - len(self._bits)))
        if self._bits[byte] & bit:
            return False
        self._bits[byte] |= bit
        self._count += 1
        return True

    def __contains__(self, number: int) -> bool:
        byte = number >> 3
        return byte < len(self._bits) and bool(self._bits[byte] & 1 << (number & 7))

    def __len__(self) -> int:
        return self._count


class NameSet:
    """Names, as hashes of 64 bits in a table that is at most 3/5 full: 13 to 27 bytes a name.

    Of ten million names two have the same hash with a probability of 3e-6.
    """

    def __init__(self) -> None:
        self._table = array("Q", bytes(8 * 1024))
        self._count = 0

    def add(self, name: str) -> bool:
        """Adds a name; False if it was there."""
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


def _hash(name: str) -> int:
    digest = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1
