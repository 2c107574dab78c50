"""A tokenizer's tokens as bytes, and a cache of grammars compiled for them.

Compiling takes milliseconds to a second, so it is done when a prompt is encoded, never between two steps, and the
result is cached.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from inference.errors import ConfigError, InputError
from inference.structured.constraint import GrammarConstraint
from inference.tokenizer import Tokenizer

if TYPE_CHECKING:
    import llguidance

# Maximum number of cached grammars.
REMEMBERED = 128
# Text to encode first and then remove, because sentencepiece adds a space at the start of a text.
BEFORE = "\x02"


class _Tokens:
    """The tokenizer interface that llguidance requires."""

    def __init__(self, tokenizer: Tokenizer, size: int, ends: Collection[int]):
        self._tokenizer = tokenizer
        special = set(tokenizer.special_ids()) | set(ends)
        self.eos_token_id = min(ends)
        self.bos_token_id = None
        self.special_token_ids = sorted(token for token in special if token < size)
        self.tokens = [self._bytes(token, token in special) for token in range(size)]
        self._ids = {data: token for token, data in enumerate(self.tokens)}
        self._longest = max(map(len, self.tokens))

    def _bytes(self, token: int, is_special: bool) -> bytes:
        # A special token never represents text, so start its bytes with a byte that is invalid in UTF-8: no grammar
        # matches it.
        data = b"" if is_special else self._tokenizer.token_bytes(token)
        return data or b"\xff" + f"[{token}]".encode()

    def __call__(self, text: bytes) -> list[int]:
        """Encodes bytes to tokens with exactly these bytes, as the tokenizer would in the middle of a text."""
        ids = self._tokenizer.encode_text(BEFORE + text.decode("utf-8", "replace"), allow_special=False)
        pieces = [self.tokens[token] for token in ids]
        for start in range(len(ids) + 1):
            if b"".join(pieces[start:]) == text:
                return ids[start:]
        return self._greedy(text)

    def _greedy(self, text: bytes) -> list[int]:
        """Encodes bytes by repeatedly taking the longest matching token."""
        found: list[int] = []
        place = 0
        while place < len(text):
            ends = range(min(len(text), place + self._longest), place, -1)
            end = next((end for end in ends if text[place:end] in self._ids), None)
            if end is None:
                return []
            found.append(self._ids[text[place:end]])
            place = end
        return found


class Vocabulary:
    """Compiles grammars for the tokens of a model.

    Args:
        size: size of the model's vocabulary; it may exceed the tokenizer's.
        ends: tokens that end an answer.

    Raises:
        ConfigError: llguidance is not installed, or there is no token that ends an answer.
    """

    def __init__(self, tokenizer: Tokenizer, size: int, ends: Collection[int]):
        try:
            from llguidance import LLTokenizer, TokenizerWrapper
        except ImportError:
            raise ConfigError(
                "structured answers need llguidance", "pip install 'mindspore-inference[structured]'"
            ) from None
        self.ends = sorted(token for token in ends if token < size)
        if not self.ends:
            raise ConfigError("structured answers need a token that ends an answer", "give eos_token_id")
        self.size = size
        self._tokens = LLTokenizer(TokenizerWrapper(_Tokens(tokenizer, size, self.ends)), size, self.ends)
        self._compiled: OrderedDict[str, llguidance.LLMatcher] = OrderedDict()

    def compile(self, grammar: str) -> Callable[[], GrammarConstraint]:
        """Compiles a grammar; returns a factory that makes a constraint for each sample.

        Raises:
            InputError: the grammar cannot be compiled.
        """
        matcher = self._compiled.get(grammar)
        if matcher is None:
            matcher = self._matcher(grammar)
            self._compiled[grammar] = matcher
            while len(self._compiled) > REMEMBERED:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(grammar)
        found: Any = matcher
        return lambda: GrammarConstraint(found.deep_copy(), self.size, self.ends)

    def _matcher(self, grammar: str) -> Any:
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokens, grammar, log_level=0)
        # Computing the first mask finds errors that compilation defers.
        if not matcher.is_error():
            matcher.compute_bitmask()
        if matcher.is_error():
            raise InputError(f"this structure cannot be compiled: {_first_line(matcher.get_error())}")
        return matcher


_vocabularies: WeakKeyDictionary[Tokenizer, dict[tuple[int, tuple[int, ...]], Vocabulary]] = WeakKeyDictionary()


def vocabulary_of(tokenizer: Tokenizer, size: int, ends: Collection[int]) -> Vocabulary:
    """Returns the vocabulary of a tokenizer; makes it at the first call.

    Raises:
        ConfigError: as for `Vocabulary`.
    """
    known = _vocabularies.setdefault(tokenizer, {})
    key = size, tuple(sorted(ends))
    if key not in known:
        known[key] = Vocabulary(tokenizer, size, ends)
    return known[key]


def _first_line(message: str) -> str:
    return " ".join(message.split("\n\n")[0].split())[:300]
