"""Reads the tokenizer in a GGUF file, and writes it as the files of a model directory.

Fields (github.com/ggml-org/ggml, docs/gguf.md): `tokenizer.ggml.model` is `llama` or `t5` for a sentencepiece model,
stored as the pieces, scores and types of its ModelProto, or `gpt2` for byte-level BPE with merges, where
`tokenizer.ggml.pre` names the pre-tokenizer. Both are converted to the formats that our own tokenizers read.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from inference.checkpoint.gguf_header import HINT, GgufFile, open_gguf
from inference.errors import TokenizerError, did_you_mean
from inference.files.values import FLAG, LARGEST_FLOAT, Reader, integer, list_of, number
from inference.notices import notice
from inference.tokenizer.base import Tokenizer
from inference.tokenizer.bpe import bpe_backend
from inference.tokenizer.chatglm import of_bytes
from inference.tokenizer.json_tokenizer import JsonTokenizer
from inference.tokenizer.pre_tokenizers import DEFAULT, PRE_TOKENIZERS, PreTokenizer
from inference.tokenizer.sentencepiece_tokenizer import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    SentencePieceTokenizer,
)
from inference.tokenizer.tokenizer_config import read_tokenizer_config

# Values of `tokenizer.ggml.model` for sentencepiece models, with sentencepiece's model_type: 2 is BPE, 1 is unigram.
SENTENCEPIECE = {"llama": 2, "t5": 1}
MODELS = (*SENTENCEPIECE, "gpt2", "gemma4")
# llama.cpp's default id of the unknown token.
DEFAULT_UNKNOWN = {"llama": 0, "t5": 2}
T = TypeVar("T")
# A file without such a token may state -1, which is the largest unsigned integer.
ID = integer(0, 2**32 - 1)
TYPES = list_of(integer(0, 255), "a list of the tokens' types")
SCORES = list_of(number(-LARGEST_FLOAT, LARGEST_FLOAT, ""), "a list of finite numbers")
BYTES = list_of(integer(-128, 255), "a list of bytes")
IDS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


@dataclass(frozen=True)
class _Stored:
    """The tokenizer stored in a file.

    Args:
        own: the file's settings, with the keys of tokenizer_config.json.
        model: a sentencepiece model, or None.
        backend: a tokenizer of the tokenizers package, or None.
    """

    own: dict[str, Any]
    model: bytes | None = None
    backend: Any = None


def read_gguf_tokenizer(path: Path, settings: Mapping[str, Any], usual_class: str | None = None) -> Tokenizer:
    """Reads the tokenizer of a file; `settings` (keys as in tokenizer_config.json) override the file.

    Raises:
        TokenizerError: there is none, or one of a kind that is not read.
    """
    stored = _stored(path)
    given = {key: value for key, value in settings.items() if value is not None}
    usual_class = usual_class if stored.model is not None else of_bytes(usual_class)
    config = read_tokenizer_config(path, {**stored.own, **given}, usual_class)
    # The file already has every token with its id.
    config = replace(config, appended=())
    if stored.model is not None:
        return SentencePieceTokenizer(stored.model, config, path)
    return JsonTokenizer(stored.backend, config, path)


def gguf_settings(path: Path) -> dict[str, Any]:
    """Reads a file's template, special tokens, bos and eos, with the keys of tokenizer_config.json."""
    file = open_gguf(path)
    tokens = file.get("tokenizer.ggml.tokens") or []
    own = _own_settings(file, tokens)
    rule = PRE_TOKENIZERS.get(file.get("tokenizer.ggml.pre", ""))
    if own["add_bos_token"] is None and rule is not None:
        own["add_bos_token"] = rule.add_bos
    return {key: value for key, value in own.items() if value is not None}


def _own_settings(file: GgufFile, tokens: list[str]) -> dict[str, Any]:
    named = {name: tokens[token_id] for name, token_id in _ids(file).items() if 0 <= token_id < len(tokens)}
    return {
        **named,
        "add_bos_token": _field(file, "add_bos_token", FLAG),
        "add_eos_token": _field(file, "add_eos_token", FLAG),
        "chat_template": file.get("tokenizer.chat_template"),
    }


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
    # transformers' AutoTokenizer selects by this class.
    kind = "PreTrainedTokenizerFast" if stored.model is None else "LlamaTokenizer"
    own = {"tokenizer_class": kind, **{key: value for key, value in stored.own.items() if value is not None}}
    text = json.dumps(own, indent=2, ensure_ascii=False)
    (target / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def _stored(path: Path) -> _Stored:
    try:
        return _read(open_gguf(path))
    except (ValueError, TypeError, AttributeError, IndexError, struct.error) as error:
        raise TokenizerError(f"the tokenizer in {path} is damaged ({error})", HINT) from error


def _read(file: GgufFile) -> _Stored:
    path, model, tokens = file.path, file.get("tokenizer.ggml.model"), file.get("tokenizer.ggml.tokens")
    if model not in MODELS or not tokens:
        raise TokenizerError(
            f"{path} has a tokenizer of kind {model}, which is not read",
            f"read are {', '.join(MODELS)}; give --processor.tokenizer.tokenizer_file the model's tokenizer.json",
        )
    types = _field(file, "token_type", TYPES) or [NORMAL] * len(tokens)
    own = _own_settings(file, tokens)
    if model in SENTENCEPIECE:
        # Like Llama 2's tokenizer.json, llama.cpp also adds the leading space after a special token.
        own["legacy"] = True
        return _Stored(own, model=_model_proto(file, tokens, types, own))
    splitting = _splitting(file)
    if own["add_bos_token"] is None:
        own["add_bos_token"] = splitting.add_bos
    own["added_tokens_decoder"] = {
        token_id: {"content": tokens[token_id], "special": kind != USER_DEFINED}
        for token_id, kind in enumerate(types)
        if kind in (CONTROL, USER_DEFINED, UNKNOWN)
    }
    merges = [tuple(merge.split(" ")) for merge in file.get("tokenizer.ggml.merges") or []]
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    return _Stored(own, backend=bpe_backend(vocabulary, merges, path, splitting))


def _splitting(file: GgufFile) -> PreTokenizer:
    """Returns the pre-tokenizer of a file; logs the choice if the file names none."""
    name = "gemma4" if file.get("tokenizer.ggml.model") == "gemma4" else file.get("tokenizer.ggml.pre")
    if name is None:
        notice(
            f"{file.path} does not say how its tokenizer splits a text (tokenizer.ggml.pre): llama.cpp's default is "
            "assumed; if answers are poor, give --processor.tokenizer.tokenizer_file the model's tokenizer.json"
        )
        name = DEFAULT
    if name not in PRE_TOKENIZERS:
        hint = did_you_mean(str(name), PRE_TOKENIZERS)
        raise TokenizerError(
            f"{file.path} splits text by the rule '{name}' (tokenizer.ggml.pre), which is not known",
            f"{hint + '; ' if hint else ''}give --processor.tokenizer.tokenizer_file the model's tokenizer.json",
        )
    return PRE_TOKENIZERS[name]


def _ids(file: GgufFile) -> dict[str, int]:
    found = {name: _field(file, f"{theirs}_token_id", ID) for name, theirs in IDS.items()}
    return {name: token_id for name, token_id in found.items() if token_id is not None}


def _field(file: GgufFile, key: str, reader: Reader[T]) -> T | None:
    """Returns a field of the tokenizer as a reader converts it; None if it is missing."""
    value = file.get(f"tokenizer.ggml.{key}")
    return None if value is None else reader.read(value, f"{file.path}: tokenizer.ggml.{key}", TokenizerError)


def _piece_types(file: GgufFile, types: list[int]) -> list[int]:
    """Returns the piece types as sentencepiece requires them: with exactly one unknown piece.

    llama.cpp's converter marks `<unk>` as CONTROL and the vocabulary's padding as UNKNOWN.
    """
    unknown = _field(file, "unknown_token_id", ID)
    if unknown is None:
        unknown = DEFAULT_UNKNOWN[file.get("tokenizer.ggml.model")]
    made = [USER_DEFINED if kind == UNKNOWN else kind for kind in types]
    if unknown >= len(made):
        raise TokenizerError(f"{file.path}: unknown_token_id {unknown} is none of its {len(made)} tokens", HINT)
    made[unknown] = UNKNOWN
    return made


def _model_proto(file: GgufFile, tokens: list[str], types: list[int], own: Mapping[str, Any]) -> bytes:
    """Rebuilds the sentencepiece ModelProto (sentencepiece_model.proto) from the file's fields."""
    scores = _field(file, "scores", SCORES) or [0.0] * len(tokens)
    if not len(tokens) == len(types) == len(scores):
        raise TokenizerError(f"{file.path}: {len(tokens)} tokens, {len(scores)} scores, {len(types)} types")
    types = _piece_types(file, types)
    made = bytearray()
    for token, score, kind in zip(tokens, scores, types, strict=True):
        piece = _message(1, token.encode()) + b"\x15" + struct.pack("<f", score) + _number(3, kind)
        made += _message(1, piece)
    # model_type and byte_fallback, followed by the names of unk, bos, eos and pad.
    trainer = _number(3, SENTENCEPIECE[file.get("tokenizer.ggml.model")]) + _number(35, int(BYTE in types))
    named = {"unk_token": tokens[types.index(UNKNOWN)], **own}
    for key, name in ((45, "unk_token"), (46, "bos_token"), (47, "eos_token"), (48, "pad_token")):
        if name in named:
            trainer += _message(key, named[name].encode())
    has_prefix = _field(file, "add_space_prefix", FLAG)
    strips = _field(file, "remove_extra_whitespaces", FLAG)
    charsmap = bytes(value % 256 for value in _field(file, "precompiled_charsmap", BYTES) or [])
    normalizer = _message(2, charsmap) if charsmap else _message(1, b"identity")
    normalizer += _number(3, int(has_prefix is not False)) + _number(4, int(strips is True)) + _number(5, 1)
    return bytes(made) + _message(2, trainer) + _message(3, normalizer)


def _varint(value: int) -> bytes:
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*made, value])


def _number(field: int, value: int) -> bytes:
    """Encodes a protobuf field that holds a number."""
    return _varint(field << 3) + _varint(value)


def _message(field: int, value: bytes) -> bytes:
    """Encodes a protobuf field that holds bytes, text or a message."""
    return _varint(field << 3 | 2) + _varint(len(value)) + value
