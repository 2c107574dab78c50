"""Cuts texts by tokens, between words if possible.

Knows texts and a tokenizer's counts; knows nothing about rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable

# A word with the space before it, or the space at the end of a text.
_UNIT = re.compile(r"\s*\S+|\s+$")
# A word that takes more than this share of a chunk is cut between characters: some scripts have no spaces.
WIDEST = 8


class TokenCuts:
    """Cuts texts.

    Args:
        count: returns the number of tokens of a text.
    """

    def __init__(self, count: Callable[[str], int]):
        self._count = count

    def chunks(self, text: str, tokens: int, overlap: int = 0) -> list[str]:
        """Cut a text into chunks with a maximum number of tokens.

        Args:
            overlap: maximum number of tokens at the end of a chunk that the next chunk repeats.

        Returns:
            The chunks in order. Without an overlap they add up to the text. A single character stays whole, however
            many tokens it has.
        """
        units = self._units(text, tokens)
        found, start = [], 0
        while start < len(units):
            end = self._end(units, start, tokens)
            found.append("".join(units[start:end]))
            if end == len(units):
                break
            start = self._back(units, start, end, overlap)
        return found

    def truncated(self, text: str, tokens: int, side: str) -> str:
        """Cut a text to a maximum number of tokens, on the right or left side."""
        units = self._units(text, tokens)
        if side == "right":
            return "".join(units[: self._end(units, 0, tokens)])
        return "".join(units[self._begin(units, 0, len(units), tokens) :])

    def _units(self, text: str, tokens: int) -> list[str]:
        """Cut a text into words, and long words into characters."""
        if self._count(text) <= tokens:
            return [text] if text else []
        units: list[str] = []
        for word in _UNIT.findall(text):
            # A token has at least one byte, so a short word needs no count.
            short = len(word.encode("utf-8", "replace")) <= max(tokens // WIDEST, 1)
            units += [word] if short or self._count(word) <= max(tokens // WIDEST, 1) else list(word)
        return units

    def _end(self, units: list[str], start: int, tokens: int) -> int:
        """Return where a chunk that begins at `start` ends: at least one unit later."""
        # The token count of a text is close to the sum over its two parts, so the binary search ends close to the
        # limit; the last steps make it exact.
        low, high = start + 1, len(units)
        while low < high:
            middle = (low + high + 1) // 2
            if self._count("".join(units[start:middle])) <= tokens:
                low = middle
            else:
                high = middle - 1
        while low > start + 1 and self._count("".join(units[start:low])) > tokens:
            low -= 1
        return low

    def _begin(self, units: list[str], least: int, end: int, tokens: int) -> int:
        """Return the first unit from which the tokens up to `end` are within the limit."""
        low, high = least, end
        while low < high:
            middle = (low + high) // 2
            if self._count("".join(units[middle:end])) <= tokens:
                high = middle
            else:
                low = middle + 1
        return high

    def _back(self, units: list[str], start: int, end: int, overlap: int) -> int:
        """Return where the next chunk begins: up to `overlap` tokens before `end`, but after `start`."""
        return self._begin(units, start + 1, end, overlap) if overlap else end
