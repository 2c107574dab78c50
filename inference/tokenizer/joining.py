"""Turns the bytes of tokens into text; knows nothing about vocabularies.

Every tokenizer maps a token to its bytes, and one `Joining` turns a run of bytes into text. So decoding at once and
decoding token by token cannot differ, and the cost per token does not depend on the length of the text.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Lead = Literal["keep", "drop_space", "drop_first_tokens_spaces"]

_EACH_BYTE = "inference.each_byte"


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    """Replaces each invalid byte with U+FFFD, as sentencepiece does; Python's "replace" merges several."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error(_EACH_BYTE, _replace_each_byte)


@dataclass(frozen=True)
class Joining:
    """A tokenizer's rule for turning bytes into text.

    Args:
        lead: what to do with the space that encoding puts before a text: `keep` it (byte-level BPE), drop one
            space at the start of the text (sentencepiece), or drop every space of the first token
            (Metaspace).
        mark_each_byte: emit one U+FFFD per invalid byte (byte fallback) instead of one per maximal invalid
            sequence (byte-level BPE; Unicode's recommendation).
    """

    lead: Lead = "keep"
    mark_each_byte: bool = False

    @property
    def errors(self) -> str:
        """The error handler for `bytes.decode`."""
        return _EACH_BYTE if self.mark_each_byte else "replace"

    def first(self, data: bytes) -> bytes:
        """Drops the spaces of a text's first token if `lead` requires it."""
        return data.replace(b" ", b"") if self.lead == "drop_first_tokens_spaces" else data

    def text(self, chunks: Sequence[bytes]) -> str:
        """Decodes the bytes of all tokens at once."""
        if not chunks:
            return ""
        text = b"".join([self.first(chunks[0]), *chunks[1:]]).decode("utf-8", self.errors)
        return text[1:] if self.lead == "drop_space" and text.startswith(" ") else text
