"""What ChatGLM's own tokenizer code adds, on a small sentencepiece model in place of its own."""

from __future__ import annotations

import base64
import json
import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from inference.config import load_config
from inference.errors import TokenizerError
from inference.models.source import resolve
from inference.tokenizer import Tokenizer, load_tokenizer

GOLDENS = Path(__file__).parents[1] / "goldens"
MODEL = GOLDENS / "tokenizers" / "spm" / "tokenizer.model"
PIECES = SentencePieceProcessor(model_file=str(MODEL))
# The special tokens' ids, as the authors' code counts them: from the number of pieces on.
FIRST = PIECES.get_piece_size()
MASK, START, EOP, USER, ASSISTANT = FIRST + 1, FIRST + 3, FIRST + 4, FIRST + 6, FIRST + 7


def tokenizer_of(place: Path, kind: str | None = "ChatGLMTokenizer", **config: Any) -> Tokenizer:
    shutil.copy(MODEL, place / "tokenizer.model")
    if kind:
        (place / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind, **config}))
    return load_tokenizer(place)


def test_every_text_begins_with_the_two_tokens_and_no_bos(tmp_path) -> None:
    tokenizer = tokenizer_of(tmp_path)
    assert tokenizer.encode("One day") == [MASK, START, *PIECES.encode("One day")]
    assert tokenizer.encode("One day", add_special_tokens=False) == PIECES.encode("One day")
    assert tokenizer.decode([MASK, START, *PIECES.encode("One day"), USER]) == "One day"
    assert len(tokenizer) == FIRST + 9 and tokenizer.token_to_id("<|observation|>") == FIRST + 8
    assert tokenizer.eos_token_id == PIECES.eos_id()


def test_words_that_hold_sop_and_eop_stay_words(tmp_path) -> None:
    tokenizer = tokenizer_of(tmp_path)
    for text in ("sop", "a sophist, eop and [g sop", "[gMASK] sop"):
        assert START not in tokenizer.encode_text(text) and EOP not in tokenizer.encode_text(text)
    assert tokenizer.encode_text("a sophist sop") == PIECES.encode("a sophist sop")
    assert tokenizer.encode_text("[gMASK]sop") == [MASK, START]
    assert MASK not in tokenizer.encode("[gMASK]sop", add_special_tokens=False, allow_special=False)


def test_a_chat_equals_the_output_of_the_authors_code(tmp_path) -> None:
    """Role, line break and text, each encoded by itself."""
    messages = [
        {"role": "user", "content": "One day"},
        {"role": "assistant", "content": "a girl"},
        {"role": "user", "content": "went out"},
    ]
    expected = [MASK, START]
    for role, message in zip((USER, ASSISTANT, USER), messages, strict=True):
        expected += [role, *PIECES.encode("\n"), *PIECES.encode(message["content"])]
    assert tokenizer_of(tmp_path).apply_chat_template(messages) == [*expected, ASSISTANT]


def test_added_tokens_of_the_published_file_are_the_same(tmp_path) -> None:
    added = {str(MASK): {"content": "[gMASK]"}, str(START): {"content": "sop"}, str(USER): {"content": "<|user|>"}}
    tokenizer = tokenizer_of(tmp_path, added_tokens_decoder=added, padding_side="left")
    assert tokenizer.encode("sop") == [MASK, START, *PIECES.encode("sop")]
    assert tokenizer.token_to_id("<|assistant|>") == ASSISTANT


def test_the_prefix_is_a_setting(tmp_path) -> None:
    tokenizer_of(tmp_path)
    ids = PIECES.encode("One day")
    assert load_tokenizer(tmp_path, settings={"prefix_tokens": ()}).encode("One day") == ids
    assert load_tokenizer(tmp_path, settings={"prefix_tokens": ["[MASK]"]}).encode("One day") == [FIRST, *ids]
    with pytest.raises(TokenizerError, match="has no <sop>, which its texts begin with; set prefix_tokens"):
        load_tokenizer(tmp_path, settings={"prefix_tokens": ["<sop>"]}).encode("One day")
    with pytest.raises(TokenizerError, match="prefix_tokens in .* is 'sop'; it must be a list"):
        load_tokenizer(tmp_path, settings={"prefix_tokens": "sop"})


def test_chatglm2_has_no_roles(tmp_path) -> None:
    tokenizer = tokenizer_of(tmp_path, None)
    assert tokenizer.encode("a") == [PIECES.bos_id(), *PIECES.encode("a")]
    tokenizer = load_tokenizer(tmp_path, settings={"type": "ChatGLM2Tokenizer"})
    assert len(tokenizer) == FIRST + 5 and tokenizer.encode("a") == [MASK, START, *PIECES.encode("a")]
    assert tokenizer.chat_template is None


@pytest.mark.parametrize("settings", [{}, {"model": {"arch": {"type": "ChatGLM2ForConditionalGeneration"}}}])
def test_the_family_decides_if_no_file_does(settings: dict[str, Any], tmp_path) -> None:
    """A checkpoint with a bare tokenizer.model beside it."""
    for file in (GOLDENS / "chatglm3").iterdir():
        shutil.copy(file, tmp_path)
    tokenizer_of(tmp_path, None)
    source = resolve(load_config({"load_checkpoint": str(tmp_path), **settings}))
    assert source.tokenizer().encode("One day") == [MASK, START, *PIECES.encode("One day")]
    given = {"processor": {"tokenizer": {"prefix_tokens": []}}}
    bare = resolve(load_config({"load_checkpoint": str(tmp_path), **given}))
    assert bare.tokenizer().encode("One day") == PIECES.encode("One day")


def test_glm4_spells_its_start_otherwise(tmp_path) -> None:
    """A tokenizer.json without a post-processor."""
    backend = Backend(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.add_special_tokens(["[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).encode("ab") == [0, 1]
    assert load_tokenizer(tmp_path, usual_class="ChatGLMTokenizer").encode("ab") == [3, 5, 0, 1]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ChatGLM4Tokenizer"}))
    assert load_tokenizer(tmp_path).encode("ab") == [3, 5, 0, 1]


RANKS = {bytes([byte]): byte for byte in range(256)}
for joined in (b"th", b"he", b" t", b" th", b" the", b"12", b"123", b"in", b"ing", b"\xc3\xa4", b"the", b"er"):
    RANKS[joined] = len(RANKS)


def write_ranks(place: Path, ranks: dict[bytes, int]) -> None:
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items())
    (place / "tokenizer.model").write_text("".join(lines))


def tiktoken_ids(text: str) -> list[int]:
    """Of a text that is one part, as tiktoken's documentation describes it."""
    parts = [bytes([byte]) for byte in text.encode()]
    while len(parts) > 1:
        ranks = [RANKS.get(left + right, len(RANKS)) for left, right in zip(parts, parts[1:], strict=False)]
        at = ranks.index(min(ranks))
        if ranks[at] == len(RANKS):
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return [RANKS[part] for part in parts]


@given(st.text("theringä", min_size=1, max_size=12))
def test_a_vocabulary_of_tiktoken_joins_the_lowest_ranks(word: str) -> None:
    tokenizer = glm4_tokenizer()
    assert tokenizer.encode_text(word) == tiktoken_ids(word)
    assert tokenizer.encode_text(f"{word} {word}") == tiktoken_ids(word) + tiktoken_ids(f" {word}")
    assert tokenizer.decode(tokenizer.encode(word)) == word


@cache
def glm4_tokenizer() -> Tokenizer:
    with TemporaryDirectory() as place:
        write_ranks(Path(place), RANKS)
        return load_tokenizer(place, usual_class="ChatGLMTokenizer")


def test_glm4_s_special_tokens_follow_its_ranks(tmp_path) -> None:
    tokenizer, first = glm4_tokenizer(), len(RANKS)
    assert tokenizer.encode("the 1234") == [first + 2, first + 4, RANKS[b"the"], 32, RANKS[b"123"], ord("4")]
    names = ("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>")
    assert [tokenizer.token_to_id(name) for name in names] == list(range(first, first + 8))
    assert tokenizer.encode("[gMASK]<sop><|user|>", add_special_tokens=False) == [first + 2, first + 4, first + 7]
    write_ranks(tmp_path, RANKS)
    with pytest.raises(TokenizerError, match="another kind .tiktoken"):
        load_tokenizer(tmp_path)
    added = {str(first + 9): {"content": "[gMASK]"}, str(first + 10): {"content": "<sop>"}}
    config = {"tokenizer_class": "ChatGLM4Tokenizer", "added_tokens_decoder": added}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(TokenizerError, match=r"has 268 tokens, and \[gMASK\] is to be 277"):
        load_tokenizer(tmp_path)
    write_ranks(tmp_path, {**RANKS, b"zz": 900})
    with pytest.raises(TokenizerError, match="its ranks are not 0 to 268"):
        load_tokenizer(tmp_path)
