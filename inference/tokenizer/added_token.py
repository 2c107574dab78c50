"""A token that is looked for in a text as a whole, before the model of the vocabulary sees it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AddedToken:
    """Such a token.

    Args:
        lstrip, rstrip: it takes the white space before and after it along.
        after: it is looked for right behind this text only; None for anywhere.
    """

    content: str
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    single_word: bool = False
    after: str | None = None
