"""A token that is matched as a whole in the text before the vocabulary's model runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AddedToken:
    """An added token.

    Args:
        lstrip, rstrip: the token also absorbs the white space before or after it.
        after: match the token only directly after this text; None to match it anywhere.
    """

    content: str
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    single_word: bool = False
    after: str | None = None
