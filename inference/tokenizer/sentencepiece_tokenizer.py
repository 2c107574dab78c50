"""Tokenizers from a sentencepiece model (`tokenizer.model`, `spiece.model`): Llama 2, Mistral, Yi, T5, the demos.

Knows sentencepiece and how Hugging Face handles added tokens around it; knows nothing about tokenizer.json.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from inference.errors import TokenizerError
from inference.tokenizer.added_token import AddedToken
from inference.tokenizer.base import Tokenizer
from inference.tokenizer.chatglm import appended_tokens
from inference.tokenizer.joining import Joining
from inference.tokenizer.tokenizer_config import TokenizerConfig

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

SPACE = "▁"  # a space as spelled in pieces
# Values of ModelProto.SentencePiece.Type.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
# Concatenated protobuf messages merge, so appending these bytes sets normalizer_spec (field 3) . add_dummy_prefix (3)
# to false.
NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece model with the added tokens of its config.

    Added tokens, control symbols and user-defined symbols are split from the text first; sentencepiece encodes the
    parts between them. Its leading space is added to the first part only, or to every part with `legacy: true`, or to
    none with `add_prefix_space: false`.

    Args:
        model: contents of the model file.
        config: special tokens and flags; unset values come from the model.
        path: named in error messages.

    Raises:
        TokenizerError: the bytes are not a sentencepiece model.
    """

    def __init__(self, model: bytes, config: TokenizerConfig | None = None, path: Path | str = "tokenizer.model"):
        self._model = model
        self._processor = _processor(model, path)
        self._types = list(_piece_types(model))
        config = _with_model_tokens(config or TokenizerConfig(), self._processor)
        self._has_prefix = config.add_prefix_space is not False and _adds_prefix(self._processor)
        super().__init__(config, Joining("drop_space" if self._has_prefix else "keep", mark_each_byte=True))
        self._added = self._added_tokens()
        self._added_ids = {token.content: token_id for token_id, token in self._added.items()}
        self._bytes: dict[int, bytes] = {}

    @property
    def vocab_size(self) -> int:
        return len(self._types)

    def __len__(self) -> int:
        return max([self.vocab_size, *(token_id + 1 for token_id in self._added)])

    def default_prefix(self) -> list[int]:
        """Returns bos if there is one, the default of Llama's tokenizer."""
        return [] if self.bos_token_id is None else [self.bos_token_id]

    def default_suffix(self) -> list[int]:
        """Returns eos if the model has no bos, as T5 expects."""
        has_no_bos = self._processor.bos_id() < 0
        return [self.eos_token_id] if has_no_bos and self.eos_token_id is not None else []

    def special_ids(self) -> Iterable[int]:
        return [token_id for token_id, token in self._added.items() if token.special]

    def token_bytes(self, token_id: int) -> bytes:
        data = self._bytes.get(token_id)
        if data is None:
            data = self._bytes[token_id] = self._piece_bytes(token_id)
        return data

    def _piece_bytes(self, token_id: int) -> bytes:
        piece = self.id_to_token(token_id)
        if piece is None:
            return b""
        if token_id not in self._added and self._types[token_id] == BYTE:
            return bytes([int(piece[3:-1], 16)])  # <0xE3>
        return piece.replace(SPACE, " ").encode()

    def id_to_token(self, token_id: int) -> str | None:
        if token_id in self._added:
            return self._added[token_id].content
        return str(self._processor.id_to_piece(token_id)) if 0 <= token_id < self.vocab_size else None

    def token_to_id(self, token: str) -> int | None:
        if token in self._added_ids:
            return self._added_ids[token]
        token_id = int(self._processor.piece_to_id(token))  # the unknown piece's id if there is no such piece
        return token_id if self.id_to_token(token_id) == token else None

    def _added_tokens(self) -> dict[int, AddedToken]:
        """Returns the tokens to match in the text, by id: the model's symbols, then the config's, then new ones."""
        added = dict(self._model_symbols())
        added.update(self.config.added)
        added.update(appended_tokens(self.config.appended, self.vocab_size))
        size = max([self.vocab_size, *(token_id + 1 for token_id in added)])
        known = {token.content: token_id for token_id, token in added.items()}
        for content in sorted(self.config.special_contents, key=_sentinel_order):
            token_id = known.get(content, int(self._processor.piece_to_id(content)))
            if content not in known and self._processor.id_to_piece(token_id) != content:
                token_id, size = size, size + 1
            added[token_id] = replace(added.get(token_id, AddedToken(content)), content=content, special=True)
        return added

    def _model_symbols(self) -> Iterator[tuple[int, AddedToken]]:
        for token_id, kind in enumerate(self._types):
            if kind in (UNKNOWN, CONTROL, USER_DEFINED):
                content = str(self._processor.id_to_piece(token_id))
                # Leave symbols that contain a space to sentencepiece, which matches them after it has
                # respelled spaces.
                if SPACE not in content:
                    yield token_id, AddedToken(content, special=kind != USER_DEFINED)

    def encode_text(self, text: str, allow_special: bool = True) -> list[int]:
        pattern = self._any_added if allow_special else self._plain_added
        ids: list[int] = []
        start, strip_left = 0, False
        for match in pattern.finditer(text):
            token = self._added[self._added_ids[match.group()]]
            part = text[start : match.start()]
            ids += self._encode_part(_stripped(part, strip_left, token.lstrip), start == 0, allow_special)
            ids.append(self._added_ids[match.group()])
            start, strip_left = match.end(), token.rstrip
        return ids + self._encode_part(_stripped(text[start:], strip_left, False), start == 0, allow_special)

    def _encode_part(self, part: str, is_first: bool, allow_special: bool) -> list[int]:
        """Encodes a part without added tokens; `is_first` if the text starts with it."""
        if not part:
            return []
        prefixed = self._has_prefix and (is_first or bool(self.config.legacy))
        ids: list[int] = []
        for piece in [part] if allow_special else self._defused(part):
            ids += (self._processor if prefixed else self._bare_processor).encode(piece)
            prefixed = False
        return ids

    def _defused(self, part: str) -> list[str]:
        """Splits `part` inside each special user-defined symbol so that sentencepiece does not match it."""
        cuts = [0, *(match.start() + 1 for match in self._special_symbols.finditer(part)), len(part)]
        return [part[a:b] for a, b in zip(cuts, cuts[1:], strict=False) if a < b]

    @cached_property
    def _bare_processor(self) -> SentencePieceProcessor:
        """The same model without the leading space; loaded at the first text that needs it."""
        if not _adds_prefix(self._processor):
            return self._processor
        return _processor(self._model + NO_DUMMY_PREFIX, "tokenizer.model")

    @cached_property
    def _any_added(self) -> re.Pattern[str]:
        return _alternatives(self._added.values())

    @cached_property
    def _plain_added(self) -> re.Pattern[str]:
        return _alternatives(token for token in self._added.values() if not token.special)

    @cached_property
    def _special_symbols(self) -> re.Pattern[str]:
        return _alternatives(
            token
            for token_id, token in self._added.items()
            if token.special and token_id < self.vocab_size and self._types[token_id] == USER_DEFINED
        )


def read_sentencepiece(path: Path, config: TokenizerConfig | None = None) -> SentencePieceTokenizer:
    """Reads the tokenizer in the file `path`.

    Raises:
        TokenizerError: the file cannot be read or is not a sentencepiece model.
    """
    try:
        model = path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"cannot read {path}: {error.strerror}") from error
    return SentencePieceTokenizer(model, config, path)


def _processor(model: bytes, path: Path | str) -> SentencePieceProcessor:
    from sentencepiece import SentencePieceProcessor

    hint = "the file may be cut short, or of another kind (tiktoken)"
    try:
        processor = SentencePieceProcessor(model_proto=model) if model else None
    except (RuntimeError, ValueError) as error:
        raise TokenizerError(f"{path} is not a sentencepiece model", hint) from error
    if processor is None or processor.get_piece_size() == 0:
        raise TokenizerError(f"{path} is not a sentencepiece model", "the file is empty")
    return processor


def _adds_prefix(processor: SentencePieceProcessor) -> bool:
    """Returns whether the model adds a leading space."""
    return bool(str(processor.normalize("a")).startswith(SPACE))


def _with_model_tokens(config: TokenizerConfig, processor: SentencePieceProcessor) -> TokenizerConfig:
    """Fills unset bos, eos, unk and pad in `config` from the model."""
    ids = {
        "bos_token": processor.bos_id(),
        "eos_token": processor.eos_id(),
        "unk_token": processor.unk_id(),
        "pad_token": processor.pad_id(),
    }
    own = {name: str(processor.id_to_piece(token_id)) for name, token_id in ids.items() if token_id >= 0}
    return replace(config, tokens={**own, **config.tokens})


def _alternatives(tokens: Iterable[AddedToken]) -> re.Pattern[str]:
    """Builds a pattern for the leftmost, longest match of `tokens`; it matches nothing if there are none."""
    behind = {token.content: f"(?<={re.escape(token.after)})" if token.after else "" for token in tokens}
    longest_first = sorted(behind, key=lambda content: (-len(content), content))
    return re.compile("|".join(behind[content] + re.escape(content) for content in longest_first) or r"(?!)")


def _sentinel_order(content: str) -> int:
    """Sort key for new tokens: T5's <extra_id_99> down to <extra_id_0>, after all others in their given order."""
    match = re.fullmatch(r"<extra_id_(\d+)>", content)
    return -int(match[1]) if match else -sys.maxsize


def _stripped(part: str, left: bool, right: bool) -> str:
    part = part.lstrip() if left else part
    return part.rstrip() if right else part


def _piece_types(model: bytes) -> Iterator[int]:
    """Reads the type of each piece from the protobuf: sentencepiece does not expose user-defined symbols.

    ModelProto field 1 is a repeated SentencePiece, whose field 3 is the type (a varint, NORMAL if absent).
    """
    for number, value in _fields(model):
        if number == 1 and isinstance(value, bytes):
            kinds = [kind for inner, kind in _fields(value) if inner == 3]
            yield kinds[-1] if kinds and isinstance(kinds[-1], int) else NORMAL


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Iterates over field numbers and values of a protobuf message that sentencepiece has already validated."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire_type = key >> 3, key & 7
        if wire_type == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        size = {1: 8, 5: 4}.get(wire_type)
        if size is None:
            size, at = _varint(message, at)
        yield number, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Reads a base-128 number; returns it and the offset after it."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
