"""Incremental detokenization: decodes text token by token.

Knows tokenizers through `token_bytes`, `all_special_ids` and `joining`; knows nothing about prompts, stop strings or
terminals. It buffers at most three bytes (an incomplete UTF-8 character), so the cost per token does not depend on the
length of the text. By construction, the chunks add up to `tokenizer.decode` of all ids.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from inference.tokenizer.base import Tokenizer


class IncrementalDetokenizer:
    """Decodes token ids one at a time; never returns part of a character.

    `"".join(map(push, ids)) + finish() == tokenizer.decode(ids)` for any ids.

    Args:
        tokenizer: provides the bytes of each token.
        skip_special_tokens: skip special tokens, as `Tokenizer.decode` does.
        context: ids whose text was already shown, usually the prompt. Without it, the first token starts the
            text, and a sentencepiece tokenizer drops its leading space.
        shown: special tokens that are not skipped.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        skip_special_tokens: bool = True,
        context: Iterable[int] = (),
        shown: frozenset[int] = frozenset(),
    ):
        self._token_bytes = tokenizer.token_bytes
        self._skipped = tokenizer.all_special_ids - shown if skip_special_tokens else frozenset()
        self._joining = tokenizer.joining
        self._utf8 = codecs.getincrementaldecoder("utf-8")(self._joining.errors)
        self._no_token_yet = True
        self._no_text_yet = True
        for token_id in context:
            self.push(token_id)

    def push(self, token_id: int) -> str:
        """Returns the text that `token_id` completes; empty while a character is incomplete."""
        if token_id in self._skipped:
            return ""
        data = self._token_bytes(token_id)
        if not data:
            return ""
        if self._no_token_yet:
            self._no_token_yet = False
            data = self._joining.first(data)
        return self._lead(self._utf8.decode(data))

    def finish(self) -> str:
        """Flushes the buffer: U+FFFD if a character is still incomplete, else an empty string."""
        return self._lead(self._utf8.decode(b"", final=True))

    def _lead(self, text: str) -> str:
        if not text or not self._no_text_yet:
            return text
        self._no_text_yet = False
        return text[1:] if self._joining.lead == "drop_space" and text[0] == " " else text
