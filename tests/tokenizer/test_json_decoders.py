"""Decoders of tokenizer.json, token by token, against the tokenizers package decoding at once."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models
from tokenizers import Tokenizer as Backend

from examples import examples
from inference.errors import TokenizerError
from inference.tokenizer import IncrementalDetokenizer
from inference.tokenizer.json_tokenizer import JsonTokenizer

ROOT = Path(__file__).resolve().parent.parent / "goldens" / "tokenizers"
PIECES = ["▁", "▁▁", "▁a", "▁▁b", "a", "b▁", "日", "é", "<0xE3>", "<0x81>", "<0x82>", "<0x41>", "<0xZZ>", "<0x4>"]
LLAMA = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
DECODERS: dict[str, Any] = {
    "metaspace always": lambda: decoders.Metaspace(prepend_scheme="always"),
    "metaspace first": lambda: decoders.Metaspace(prepend_scheme="first"),
    "metaspace never": lambda: decoders.Metaspace(prepend_scheme="never"),
    "metaspace in a sequence": lambda: decoders.Sequence([decoders.Metaspace()]),
    "replace": lambda: decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()]),
    "llama": lambda: decoders.Sequence(LLAMA),
    "gemma": lambda: decoders.Sequence(LLAMA[:3]),
    "byte level": lambda: decoders.ByteLevel(),
}


def backend_with(decoder: Any) -> Backend:
    backend = Backend(models.WordLevel({piece: index for index, piece in enumerate(PIECES)}, unk_token="a"))
    if decoder is not None:
        backend.decoder = decoder
    return backend


@cache
def tokenizers(name: str) -> tuple[JsonTokenizer, Backend]:
    return JsonTokenizer(backend_with(DECODERS[name]())), backend_with(DECODERS[name]())


def half_valid(ids: list[int]) -> bool:
    """Whether a run of byte tokens has both whole characters and wrong bytes; then we keep the characters."""
    data = b""
    for token in [*(PIECES[token_id] for token_id in ids if token_id < len(PIECES)), "a"]:
        if token in ("<0xE3>", "<0x81>", "<0x82>", "<0x41>"):
            data += bytes([int(token[3:5], 16)])
            continue
        if data.decode("utf-8", "ignore") and "\ufffd" in data.decode("utf-8", "replace"):
            return True
        data = b""
    return False


@pytest.mark.parametrize("name", DECODERS)
@examples(150)
@given(ids=st.lists(st.integers(0, len(PIECES) + 1), max_size=9))
def test_any_ids(name: str, ids: list[int]) -> None:
    tokenizer, backend = tokenizers(name)
    stream = IncrementalDetokenizer(tokenizer)
    streamed = "".join(stream.push(token_id) for token_id in ids) + stream.finish()
    assert streamed == tokenizer.decode(ids)
    if not half_valid(ids) or name not in ("llama", "gemma"):
        assert streamed == backend.decode(ids)


@examples(300)
@given(ids=st.lists(st.integers(0, 370), max_size=20), skip=st.booleans())
def test_byte_level_bpe(ids: list[int], skip: bool) -> None:
    tokenizer, backend = _llama3()
    assert tokenizer.decode(ids, skip) == backend.decode(ids, skip_special_tokens=skip)


@cache
def _llama3() -> tuple[JsonTokenizer, Backend]:
    path = str(ROOT / "llama3" / "tokenizer.json")
    return JsonTokenizer(Backend.from_file(path)), Backend.from_file(path)


@pytest.mark.parametrize("content", ["<|é|>", "<日本>", "< two words >", "<|end|>"])
def test_an_added_token_is_shown_as_it_is_written(content: str) -> None:
    """Not as the bytes that its letters could spell, which for `<|é|>` are no text."""
    backend = Backend.from_file(str(ROOT / "llama3" / "tokenizer.json"))
    backend.add_tokens([content])
    tokenizer = JsonTokenizer(backend)
    assert tokenizer.decode(tokenizer.encode(f"é{content}é")) == f"é{content}é"


@pytest.mark.parametrize(
    ("decoder", "told"),
    [
        (decoders.WordPiece(), "WordPiece"),
        (decoders.BPEDecoder(), "BPEDecoder"),
        (decoders.CTC(), "CTC"),
        (None, "none"),
        (decoders.Replace(Regex("a+"), "b"), "Replace"),
        (decoders.Sequence([decoders.Strip(" ", 1, 0)]), "Strip"),
        (decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 0, 1)]), "Strip"),
    ],
)
def test_decoders_that_cannot_work_token_by_token(decoder: Any, told: str) -> None:
    with pytest.raises(TokenizerError, match=f"some.json has a decoder of type {told} that is not supported"):
        JsonTokenizer(backend_with(decoder), path="some.json")
