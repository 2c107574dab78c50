"""How the bytes of tokens become text; knows nothing of vocabularies.

Every tokenizer here says of a token which bytes it stands for, and one `Joining` says how a run of bytes
becomes text. So decoding at once and decoding token by token cannot differ, and a token costs the same at any
length.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Lead = Literal["keep", "drop_space", "drop_first_tokens_spaces"]

_EACH_BYTE = "inference.each_byte"


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    """U+FFFD for each invalid byte, as sentencepiece has it; Python's "replace" gives one for several."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error(_EACH_BYTE, _replace_each_byte)


@dataclass(frozen=True)
class Joining:
    """The rule of one tokenizer.

    Args:
        lead: what happens to the space that encoding puts before a text: `keep` it (byte-level BPE), drop one
            space at the start of the text (sentencepiece), or drop every space of the first token
            (Metaspace).
        mark_each_byte: a U+FFFD for each invalid byte (byte fallback), or one for each maximal invalid
            sequence (byte-level BPE; what Unicode recommends).
    """

    lead: Lead = "keep"
    mark_each_byte: bool = False

    @property
    def errors(self) -> str:
        """The error handler that `bytes.decode` takes."""
        return _EACH_BYTE if self.mark_each_byte else "replace"

    def first(self, data: bytes) -> bytes:
        """The bytes of a text's first token."""
        return data.replace(b" ", b"") if self.lead == "drop_first_tokens_spaces" else data

    def text(self, chunks: Sequence[bytes]) -> str:
        """The text of tokens whose bytes are `chunks`, all at once."""
        if not chunks:
            return ""
        text = b"".join([self.first(chunks[0]), *chunks[1:]]).decode("utf-8", self.errors)
        return text[1:] if self.lead == "drop_space" and text.startswith(" ") else text
