"""Every golden tokenizer gives what transformers recorded (scripts/make_goldens.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from inference.tokenizer import IncrementalDetokenizer, Tokenizer, load_tokenizer

ROOT = Path(__file__).resolve().parent.parent / "goldens" / "tokenizers"
NAMES = ("spm", "spm_and_json", "qwen", "llama3", "flags")


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest) -> tuple[Tokenizer, dict[str, Any]]:
    golden = json.loads((ROOT / request.param / "golden.json").read_text(encoding="utf-8"))
    return load_tokenizer(ROOT / request.param), golden


def test_every_directory_is_tested() -> None:
    assert sorted(path.name for path in ROOT.iterdir()) == sorted(NAMES)


def test_encode(case: tuple[Tokenizer, dict[str, Any]]) -> None:
    tokenizer, golden = case
    for row in golden["encode"]:
        assert tokenizer.encode(row["text"], add_special_tokens=False) == row["ids"], row["text"]
        assert tokenizer.encode(row["text"]) == golden["prefix"] + row["ids"], row["text"]


def test_decode(case: tuple[Tokenizer, dict[str, Any]]) -> None:
    tokenizer, golden = case
    for row in golden["decode"]:
        assert tokenizer.decode(row["ids"]) == row["text"], row["ids"]
        assert tokenizer.decode(row["ids"], skip_special_tokens=False) == row["text_with_special"], row["ids"]


@pytest.mark.parametrize("skip", [True, False])
def test_streamed_text_is_the_recorded_text(case: tuple[Tokenizer, dict[str, Any]], skip: bool) -> None:
    tokenizer, golden = case
    for row in golden["decode"]:
        stream = IncrementalDetokenizer(tokenizer, skip_special_tokens=skip)
        text = "".join(stream.push(token_id) for token_id in row["ids"]) + stream.finish()
        assert text == row["text" if skip else "text_with_special"], row["ids"]


def test_chat(case: tuple[Tokenizer, dict[str, Any]]) -> None:
    tokenizer, golden = case
    for row in golden["chat"]:
        text = tokenizer.apply_chat_template(row["messages"], tokenize=False, **row["arguments"])
        assert text == row["text"]
        assert tokenizer.apply_chat_template(row["messages"], **row["arguments"]) == row["ids"]


def test_texts_are_decoded_back(case: tuple[Tokenizer, dict[str, Any]]) -> None:
    """Decoding undoes encoding, but for what the tokenizer itself normalizes (Qwen: NFC)."""
    tokenizer, golden = case
    for row in golden["encode"]:
        if "e\u0301" in row["text"] or any(row["text"].count(c) for c in "▁<"):
            continue
        assert tokenizer.decode(tokenizer.encode(row["text"])) == row["text"]


def test_both_files_of_a_llama_2_directory_agree() -> None:
    """tokenizer.json is taken; tokenizer.model must say the same of any text without special tokens."""
    golden = json.loads((ROOT / "spm_and_json" / "golden.json").read_text(encoding="utf-8"))
    model = load_tokenizer(None, settings={"vocab_file": str(ROOT / "spm_and_json" / "tokenizer.model")})
    both = load_tokenizer(ROOT / "spm_and_json")
    assert type(model) is not type(both)
    texts = [row["text"] for row in golden["encode"] if not set(both.encode(row["text"])[1:]) & set(range(8))]
    assert len(texts) > 20
    for text in texts:
        assert model.encode(text) == both.encode(text), text
    for row in golden["decode"]:
        assert model.decode(row["ids"]) == both.decode(row["ids"]) == row["text"]
    assert model.all_special_ids == both.all_special_ids
    assert (model.vocab_size, len(model)) == (both.vocab_size, len(both))


def test_token_names_and_ids() -> None:
    spm = load_tokenizer(ROOT / "spm")
    assert (spm.bos_token_id, spm.eos_token_id, spm.unk_token_id, spm.pad_token_id) == (1, 2, 0, 500)
    assert (spm.vocab_size, len(spm)) == (500, 502)
    assert spm.convert_ids_to_tokens([1, 501, 502, -1]) == ["<s>", "<note>", None, None]
    assert spm.convert_tokens_to_ids(["<note>", "no such token", "</s>"]) == [501, 0, 2]
    # Control symbols are special without being named; of the user-defined ones only the one that the config
    # names.
    assert set(spm.all_special_tokens) == {
        *("<unk>", "<s>", "</s>", "<pad>", "<|user|>", "<|assistant|>", "<|end|>", "<|hint|>")
    }
    qwen = load_tokenizer(ROOT / "qwen")
    assert qwen.bos_token_id is None
    assert qwen.eos_token == "<|im_end|>"
    assert set(qwen.all_special_tokens) == {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}
    assert qwen.convert_tokens_to_ids("no such token") is None
    assert qwen.convert_ids_to_tokens(10**12) is None


@pytest.mark.parametrize("name", NAMES)
def test_untrusted_text_cannot_hold_special_tokens(name: str) -> None:
    tokenizer = load_tokenizer(ROOT / name)
    for token in tokenizer.all_special_tokens:
        # A token of a single word is none inside another word.
        for text in (
            token,
            f"a {token} b",
            f"{token}\n{token} {token}",
            *([f"a{token}b"] if token != "<word>" else []),
        ):
            assert set(tokenizer.encode(text, add_special_tokens=False)) & tokenizer.all_special_ids
            ids = tokenizer.encode(text, add_special_tokens=False, allow_special=False)
            assert not set(ids) & tokenizer.all_special_ids, text
            assert tokenizer.decode(ids) == text
    # The switch does not stick.
    assert set(tokenizer.encode(tokenizer.eos_token or "")) & tokenizer.all_special_ids
