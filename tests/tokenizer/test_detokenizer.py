"""Text token by token: equal to decoding at once, never part of a character, the same cost at any length."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples import examples
from inference.tokenizer import IncrementalDetokenizer, Joining, Tokenizer, load_tokenizer

ROOT = Path(__file__).resolve().parent.parent / "goldens" / "tokenizers"
names = st.sampled_from(["spm", "spm_and_json", "qwen", "llama3"])
texts = st.lists(
    st.sampled_from(
        [*" \n\tabeZ0.ÿéあ漢字日本😀▁Ġ\u200d👨👩\ufffd\u0301", "👨‍👩‍👧‍👦", "🇯🇵", "  ", "</s>", "<|im_end|>"]
    )
    | st.characters(exclude_categories=["Cs"]),
    max_size=30,
).map("".join)


class ByteTokenizer(Tokenizer):
    """A byte a token; 256 is special."""

    vocab_size = 257

    def encode_text(self, text: str, allow_special: bool = True) -> list[int]:
        return list(text.encode())

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if 0 <= token_id < 256 else b"<end>" if token_id == 256 else b""

    def id_to_token(self, token_id: int) -> str | None:
        return f"<{token_id}>" if 0 <= token_id <= 256 else None

    def token_to_id(self, token: str) -> int | None:
        return int(token[1:-1])

    def special_ids(self) -> list[int]:
        return [256]


@cache
def tokenizer_called(name: str) -> Tokenizer:
    return load_tokenizer(ROOT / name)


def stream(tokenizer: Tokenizer, ids: Sequence[int], skip: bool = True) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer, skip_special_tokens=skip)
    return [*(detokenizer.push(token_id) for token_id in ids), detokenizer.finish()]


@examples(400)
@given(names, st.lists(st.integers(-2, 520), max_size=40), st.booleans())
def test_any_ids(name: str, ids: list[int], skip: bool) -> None:
    """Special tokens, ids out of range and broken UTF-8, as half of these vocabularies is bytes."""
    tokenizer = tokenizer_called(name)
    assert "".join(stream(tokenizer, ids, skip)) == tokenizer.decode(ids, skip_special_tokens=skip)


@examples(300)
@given(names, texts, st.data())
def test_any_text_cut_anywhere(name: str, text: str, data: st.DataObject) -> None:
    tokenizer = tokenizer_called(name)
    ids = tokenizer.encode(text)
    start = data.draw(st.integers(0, len(ids)))
    part = ids[start : data.draw(st.integers(start, len(ids)))]
    assert "".join(stream(tokenizer, part)) == tokenizer.decode(part)


@examples(300)
@given(st.binary(max_size=40), st.booleans())
def test_any_bytes(data: bytes, each: bool) -> None:
    """A slow twin: Python's own decoding, with one mark a byte done by hand."""
    tokenizer = ByteTokenizer(joining=Joining(mark_each_byte=each))
    expected = data.decode("utf-8", "replace")
    if each:
        expected = data.decode("utf-8", "surrogateescape").translate({0xDC00 + b: 0xFFFD for b in range(256)})
    assert "".join(stream(tokenizer, list(data))) == tokenizer.decode(list(data)) == expected


@examples(300)
@given(names, texts)
def test_no_partial_character_is_shown(name: str, text: str) -> None:
    tokenizer = tokenizer_called(name)
    ids = tokenizer.encode(text)
    chunks = stream(tokenizer, ids)
    assert "".join(chunks).count("\ufffd") == tokenizer.decode(ids).count("\ufffd") == text.count("\ufffd")
    # Every chunk can be written to a terminal in UTF-8 by itself.
    assert all(chunk.encode("utf-8").decode("utf-8") == chunk for chunk in chunks)


@examples(200)
@given(names, st.lists(st.integers(0, 505), max_size=20), st.lists(st.integers(0, 505), max_size=20))
def test_context(name: str, prompt: list[int], answer: list[int]) -> None:
    """The text after a prompt is what it adds to the prompt's text; spaces at the border are kept."""
    tokenizer = tokenizer_called(name)
    before = IncrementalDetokenizer(tokenizer)
    shown = "".join(before.push(token_id) for token_id in prompt)
    after = IncrementalDetokenizer(tokenizer, context=prompt)
    added = "".join(after.push(token_id) for token_id in answer) + after.finish()
    assert shown + added == tokenizer.decode(prompt + answer)


def test_the_space_at_the_border_of_prompt_and_answer() -> None:
    tokenizer = tokenizer_called("spm")
    prompt = tokenizer.encode("Once upon")
    answer = tokenizer.encode("Once upon a time")[len(prompt) :]
    assert "".join(stream(tokenizer, answer)) == tokenizer.decode(answer) == "a time"
    detokenizer = IncrementalDetokenizer(tokenizer, context=prompt)
    assert "".join(map(detokenizer.push, answer)) == " a time"


@pytest.mark.parametrize("byte", [0x80, 0xFF, 0xE3, 0xF0])
def test_bytes_that_never_become_valid_are_not_kept(byte: int) -> None:
    """Each is marked at once or with the next one, so nothing grows with their number."""
    count = 5000
    chunks = stream(ByteTokenizer(), [byte] * count)
    assert "".join(chunks) == "\ufffd" * count
    assert max(map(len, chunks)) == 1
    assert sum(map(len, chunks[:100])) >= 99


@pytest.mark.parametrize(("name", "text"), [("spm", "日本語"), ("qwen", "漢字😀"), ("llama3", "👨‍👩‍👧‍👦")])
def test_a_character_is_emitted_with_its_last_byte(name: str, text: str) -> None:
    tokenizer = tokenizer_called(name)
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert len(ids) > len(text)
    chunks = stream(tokenizer, ids)
    assert "" in chunks[:-1]
    assert all(len(chunk) <= 1 for chunk in chunks)
    assert chunks[-1] == ""
    assert "".join(chunks) == text


def test_an_unfinished_character_is_marked_at_the_end() -> None:
    tokenizer = tokenizer_called("spm")
    ids = [tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in "a字".encode()[:-1]]
    assert stream(tokenizer, ids) == ["a", "", "", "\ufffd\ufffd"]  # type: ignore[arg-type]


def test_complete_characters_in_invalid_bytes_are_kept() -> None:
    tokenizer = tokenizer_called("spm")
    ids = [tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in [*"字".encode(), 0xFF, 0x41]]
    assert tokenizer.decode(ids) == "字\ufffdA"  # type: ignore[arg-type]


def test_special_tokens() -> None:
    tokenizer = ByteTokenizer()
    ids = [0xE3, 0x81, 256, 0x82, 256]
    assert stream(tokenizer, ids) == ["", "", "", "あ", "", ""]
    assert stream(tokenizer, ids, skip=False) == ["", "", "\ufffd<end>", "\ufffd", "<end>", ""]
