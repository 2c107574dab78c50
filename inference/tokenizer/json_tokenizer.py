"""Tokenizers of the `tokenizers` package (`tokenizer.json`): Llama 3, Qwen, and most newer models.

Knows that package and how its decoders turn tokens into bytes; knows nothing about sentencepiece.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference.errors import TokenizerError
from inference.tokenizer.added_token import AddedToken
from inference.tokenizer.base import Tokenizer
from inference.tokenizer.joining import Joining, Lead
from inference.tokenizer.tokenizer_config import TokenizerConfig

if TYPE_CHECKING:
    import tokenizers

Step = Callable[[str], "str | bytes"]


class JsonTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` package with the tokens and flags of its config.

    Args:
        backend: the loaded tokenizer. This object takes ownership and modifies it (adds tokens, disables padding
            and truncation).
        config: special tokens and flags. add_bos_token and add_eos_token override the file's post-processor.
        path: named in error messages.

    Raises:
        TokenizerError: the decoder is not supported.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        config: TokenizerConfig | None = None,
        path: Path | str = "tokenizer.json",
    ):
        decoder = read_decoder(backend, path)
        super().__init__(config, decoder.joining)
        backend.no_truncation()
        backend.no_padding()
        _add_missing(backend, self.config)
        self._backend = backend
        self._decoder = decoder
        self._added = backend.get_added_tokens_decoder()
        self._bytes: dict[int, bytes] = {}
        self._lock = threading.Lock()

    @property
    def vocab_size(self) -> int:
        return int(self._backend.get_vocab_size(with_added_tokens=False))

    def __len__(self) -> int:
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    def default_prefix(self) -> list[int]:
        return self._around_text[0]

    def default_suffix(self) -> list[int]:
        return self._around_text[1]

    @cached_property
    def _around_text(self) -> tuple[list[int], list[int]]:
        """Finds the ids that the post-processor adds before and after a text, by encoding a single letter."""
        bare = self._backend.encode("a", add_special_tokens=False).ids
        full = self._backend.encode("a", add_special_tokens=True).ids
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return full[:start], full[start + len(bare) :]
        return [], []

    def special_ids(self) -> Iterable[int]:
        return [token_id for token_id, token in self._added.items() if token.special]

    def encode_text(self, text: str, allow_special: bool = True) -> list[int]:
        # The flag belongs to the backend, not to the call, so other threads must wait while it is set.
        with self._lock:
            self._backend.encode_special_tokens = not allow_special
            return list(self._backend.encode(text, add_special_tokens=False).ids)

    def token_bytes(self, token_id: int) -> bytes:
        data = self._bytes.get(token_id)
        if data is None:
            data = self._bytes[token_id] = self._piece_bytes(token_id)
        return data

    def _piece_bytes(self, token_id: int) -> bytes:
        token = self.id_to_token(token_id)
        if token is None:
            return b""
        data = self._decoder.to_bytes(token)
        return token.encode() if token_id in self._added and not _is_text(data) else data

    def id_to_token(self, token_id: int) -> str | None:
        # The package's ids are unsigned 32-bit integers; anything else overflows.
        return self._backend.id_to_token(token_id) if 0 <= token_id < 2**32 else None

    def token_to_id(self, token: str) -> int | None:
        return self._backend.token_to_id(token)


def read_json_tokenizer(path: Path, config: TokenizerConfig | None = None) -> JsonTokenizer:
    """Reads the tokenizer in the file `path`.

    Raises:
        TokenizerError: the file cannot be read or is not a tokenizer.
    """
    import tokenizers

    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise TokenizerError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise TokenizerError(f"{path} is not UTF-8", "the file may be damaged") from error
    try:
        backend = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the package raises plain Exception
        raise TokenizerError(f"{path} is not a tokenizer: {error}", "the file may be cut short") from error
    tokenizer = JsonTokenizer(backend, config, path)
    try:
        backend.encode("a")
    except BaseException as error:  # the package panics if tokens of the post-processor are missing
        if isinstance(error, KeyboardInterrupt):
            raise
        raise TokenizerError(f"{path} cannot encode a text: {error}", "the file may be damaged") from error
    return tokenizer


def _add_missing(backend: tokenizers.Tokenizer, config: TokenizerConfig) -> None:
    """Adds the config's tokens that the file lacks or has with other flags; tokens with known ids first.

    As in transformers, the flags of tokenizer_config.json's added_tokens_decoder outrank those of tokenizer.json, but a
    token that is special in one of the two is special.
    """
    import tokenizers

    present = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    special_contents = {*config.special_contents, *(content for content, token in present.items() if token.special)}
    wanted = {token.content: token for _, token in sorted(config.added.items())}
    for content in sorted(config.special_contents):
        if content not in present or not present[content].special:
            wanted.setdefault(content, AddedToken(content, special=True))
    made = [
        tokenizers.AddedToken(
            content,
            single_word=token.single_word,
            lstrip=token.lstrip,
            rstrip=token.rstrip,
            normalized=token.normalized,
            special=content in special_contents,
        )
        for content, token in wanted.items()
    ]
    # Use one call, because each call rebuilds the package's tables of added tokens.
    backend.add_tokens([token for token in made if _flags(token) != _flags(present.get(token.content))])


def _flags(token: tokenizers.AddedToken | None) -> tuple[bool, ...] | None:
    return token and (token.single_word, token.lstrip, token.rstrip, token.normalized, token.special)


@dataclass
class _Decoder:
    """The combined steps of a tokenizer.json's decoder."""

    steps: list[Step] = field(default_factory=list)
    lead: Lead = "keep"
    byte_level: bool = False
    byte_fallback: bool = False
    fused: bool = False

    @property
    def joining(self) -> Joining:
        return Joining(self.lead, mark_each_byte=self.byte_fallback)

    def to_bytes(self, token: str) -> bytes:
        """Returns the bytes of one token, by its byte-level spelling or by applying all steps."""
        if self.byte_level:
            return _byte_level(token)
        for step in self.steps:
            result = step(token)
            if isinstance(result, bytes):
                return result
            token = result
        return token.encode()


def read_decoder(backend: tokenizers.Tokenizer, path: Path | str) -> _Decoder:
    """Reads the decoder as a rule for single tokens and a rule for joining them.

    Raises:
        TokenizerError: a step cannot be applied token by token; no supported decoder-only model has one.
    """
    decoder = _Decoder()
    # Without a decoder the package puts a space between tokens, which no supported model needs.
    state = {"type": "none"} if backend.decoder is None else json.loads(backend.decoder.__getstate__())
    for step in state.get("decoders", [state]):
        if not _read_step(decoder, step):
            hint = "known are ByteLevel, Metaspace, and Replace, ByteFallback, Fuse, Strip as Llama 2 has them"
            raise TokenizerError(f"{path} has a decoder of type {step.get('type')} that is not supported", hint)
    return decoder


def _read_step(decoder: _Decoder, step: Mapping[str, Any]) -> bool:
    """Adds one step to `decoder`; returns False if the step is not supported."""
    kind = step.get("type")
    if kind == "ByteLevel":
        decoder.byte_level = True
    elif kind == "Fuse":
        decoder.fused = True
    elif kind == "ByteFallback":
        decoder.byte_fallback = True
        decoder.steps.append(_fallback_byte)
    elif kind == "Replace" and "String" in step["pattern"]:
        decoder.steps.append(_replacing(step["pattern"]["String"], step["content"]))
    elif kind == "Metaspace":
        decoder.steps.append(_replacing(step["replacement"], " "))
        decoder.lead = "keep" if step.get("prepend_scheme") == "never" else "drop_first_tokens_spaces"
    elif kind == "Strip" and decoder.fused and (step["content"], step["start"], step["stop"]) == (" ", 1, 0):
        decoder.lead = "drop_space"
    else:
        return False
    return True


def _replacing(old: str, new: str) -> Step:
    return lambda token: token.replace(old, new)


def _fallback_byte(token: str) -> str | bytes:
    """Converts `<0xE3>` to the byte E3; returns any other token unchanged."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes([int(token[3:5], 16)])
        except ValueError:
            return token
    return token


def _byte_level_alphabet() -> dict[str, int]:
    """Maps each character of byte-level BPE (GPT-2) to its byte.

    A printable byte is spelled as itself; the others are spelled as characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    spelled = {chr(byte): byte for byte in printable}
    return spelled | {chr(0x100 + index): byte for index, byte in enumerate(others)}


_BYTE_OF = _byte_level_alphabet()
# The inverse: character by byte.
SPELLING = {byte: character for character, byte in _BYTE_OF.items()}


def _byte_level(token: str) -> bytes:
    """Decodes the byte-level spelling of `token`; an added token that does not spell bytes is UTF-8."""
    try:
        return bytes([_BYTE_OF[character] for character in token])
    except KeyError:
        return token.encode()


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
