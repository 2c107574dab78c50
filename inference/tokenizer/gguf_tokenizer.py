"""The tokenizer inside a GGUF file: reads it, and writes it as the files of a model directory.

Fields (github.com/ggml-org/ggml, docs/gguf.md): `tokenizer.ggml.model` is `llama` for a sentencepiece model, whose
pieces, scores and types are those of its ModelProto, or `gpt2` for byte-level BPE with merges, where
`tokenizer.ggml.pre` names how a text is cut before. Both become what our own tokenizers read.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from inference.checkpoint.gguf_header import HINT, GgufFile, open_gguf
from inference.errors import TokenizerError
from inference.tokenizer.base import Tokenizer
from inference.tokenizer.byte_level import DIGITS, THREES, byte_level_backend
from inference.tokenizer.chatglm import of_bytes
from inference.tokenizer.json_tokenizer import JsonTokenizer
from inference.tokenizer.sentencepiece_tokenizer import BYTE, CONTROL, NORMAL, USER_DEFINED, SentencePieceTokenizer
from inference.tokenizer.tokenizer_config import read_tokenizer_config

IDS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
# By `tokenizer.ggml.pre`: where a text is cut (None for GPT-2's own rule), whether it is normalized (NFC), whether a
# whole word that is a token is taken without merges, and whether bos comes first where the file does not say.
CUTS: dict[str, tuple[str | None, bool, bool, bool]] = {
    "llama-bpe": (THREES, False, True, True),
    # Phi-4's, and GLM-4's of both layouts.
    "dbrx": (THREES, False, False, False),
    "chatglm-bpe": (THREES, False, False, False),
    "glm4": (THREES, False, False, False),
    "qwen2": (DIGITS, True, False, False),
    "gpt-2": (None, False, False, False),
    "default": (None, False, False, False),
}


@dataclass(frozen=True)
class _Stored:
    """A file's tokenizer.

    Args:
        own: what a tokenizer_config.json would say.
        model: a sentencepiece model, or None.
        backend: of the tokenizers package, or None.
    """

    own: dict[str, Any]
    model: bytes | None = None
    backend: Any = None


def read_gguf_tokenizer(path: Path, settings: Mapping[str, Any], usual_class: str | None = None) -> Tokenizer:
    """The tokenizer of a file; `settings` (keys as in tokenizer_config.json) win over what it says.

    Raises:
        TokenizerError: there is none, or one of a kind that is not read.
    """
    stored = _stored(path)
    given = {key: value for key, value in settings.items() if value is not None}
    usual_class = usual_class if stored.model is not None else of_bytes(usual_class)
    config = read_tokenizer_config(path, {**stored.own, **given}, usual_class)
    # Every token is in the file, with its id.
    config = replace(config, appended=())
    if stored.model is not None:
        return SentencePieceTokenizer(stored.model, config, path)
    return JsonTokenizer(stored.backend, config, path)


def write_gguf_tokenizer(path: Path, target: Path) -> None:
    """Writes a file's tokenizer into the directory `target`, as tokenizer.model or tokenizer.json with its config.

    Raises:
        TokenizerError: there is none, or one of a kind that is not read.
    """
    stored = _stored(path)
    if stored.model is not None:
        (target / "tokenizer.model").write_bytes(stored.model)
    else:
        (target / "tokenizer.json").write_text(stored.backend.to_str(), encoding="utf-8")
    own = {key: value for key, value in stored.own.items() if value is not None}
    text = json.dumps(own, indent=2, ensure_ascii=False)
    (target / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def _stored(path: Path) -> _Stored:
    try:
        return _read(open_gguf(path))
    except (ValueError, TypeError, AttributeError, IndexError, struct.error) as error:
        raise TokenizerError(f"the tokenizer in {path} is damaged ({error})", HINT) from error


def _read(file: GgufFile) -> _Stored:
    path, model, tokens = file.path, file.get("tokenizer.ggml.model"), file.get("tokenizer.ggml.tokens")
    if model not in ("llama", "gpt2") or not tokens:
        raise TokenizerError(
            f"{path} has a tokenizer of kind {model}, which is not read",
            "read are llama and gpt2; give --processor.tokenizer.tokenizer_file the model's tokenizer.json",
        )
    types = file.get("tokenizer.ggml.token_type") or [NORMAL] * len(tokens)
    own: dict[str, Any] = {
        name: tokens[token_id] for name, token_id in _ids(file).items() if 0 <= token_id < len(tokens)
    }
    own |= {
        "add_bos_token": file.get("tokenizer.ggml.add_bos_token"),
        "add_eos_token": file.get("tokenizer.ggml.add_eos_token"),
        "chat_template": file.get("tokenizer.chat_template"),
    }
    if model == "llama":
        # llama.cpp puts the space that begins a text after a special token too, as Llama 2's tokenizer.json does.
        own["legacy"] = True
        return _Stored(own, model=_model_proto(file, tokens, types, own))
    pre = file.get("tokenizer.ggml.pre", "default")
    if pre not in CUTS:
        raise TokenizerError(
            f"{path} cuts text as '{pre}' does, which is not known here",
            f"known are {', '.join(CUTS)}; give --processor.tokenizer.tokenizer_file the model's tokenizer.json",
        )
    if own["add_bos_token"] is None:
        own["add_bos_token"] = CUTS[pre][3]
    own["added_tokens_decoder"] = {
        token_id: {"content": tokens[token_id], "special": kind == CONTROL}
        for token_id, kind in enumerate(types)
        if kind in (CONTROL, USER_DEFINED)
    }
    return _Stored(own, backend=_byte_level(file, tokens, pre))


def _ids(file: GgufFile) -> dict[str, int]:
    found = {name: file.get(f"tokenizer.ggml.{theirs}_token_id") for name, theirs in IDS.items()}
    return {name: token_id for name, token_id in found.items() if token_id is not None}


def _byte_level(file: GgufFile, tokens: list[str], pre: str) -> Any:
    """Byte-level BPE as the tokenizers package has it."""
    cut, normalized, whole_words, _ = CUTS[pre]
    merges = [tuple(merge.split(" ")) for merge in file.get("tokenizer.ggml.merges") or []]
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    return byte_level_backend(vocabulary, merges, file.path, cut=cut, normalized=normalized, whole_words=whole_words)


def _model_proto(file: GgufFile, tokens: list[str], types: list[int], own: Mapping[str, Any]) -> bytes:
    """The ModelProto of sentencepiece (sentencepiece_model.proto) that the file's fields were taken from."""
    scores = file.get("tokenizer.ggml.scores") or [0.0] * len(tokens)
    if not len(tokens) == len(types) == len(scores):
        raise TokenizerError(f"{file.path}: {len(tokens)} tokens, {len(scores)} scores, {len(types)} types")
    made = bytearray()
    for token, score, kind in zip(tokens, scores, types, strict=True):
        piece = _message(1, token.encode()) + b"\x15" + struct.pack("<f", score) + _number(3, kind)
        made += _message(1, piece)
    # model_type BPE, byte_fallback, then the names of unk, bos, eos and pad.
    trainer = _number(3, 2) + _number(35, int(BYTE in types))
    for number, name in ((45, "unk_token"), (46, "bos_token"), (47, "eos_token"), (48, "pad_token")):
        if name in own:
            trainer += _message(number, own[name].encode())
    has_prefix = file.get("tokenizer.ggml.add_space_prefix", True)
    strips = file.get("tokenizer.ggml.remove_extra_whitespaces", False)
    charsmap = bytes(file.get("tokenizer.ggml.precompiled_charsmap") or [])
    normalizer = _message(2, charsmap) if charsmap else _message(1, b"identity")
    normalizer += _number(3, int(has_prefix)) + _number(4, int(strips)) + _number(5, 1)
    return bytes(made) + _message(2, trainer) + _message(3, normalizer)


def _varint(value: int) -> bytes:
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*made, value])


def _number(field: int, value: int) -> bytes:
    """A protobuf field that is a number."""
    return _varint(field << 3) + _varint(value)


def _message(field: int, value: bytes) -> bytes:
    """A protobuf field that is bytes, text or a message."""
    return _varint(field << 3 | 2) + _varint(len(value)) + value
