"""Calling a tokenizer, as scripts written for MindFormers and Hugging Face do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inference.errors import InputError, TokenizerError
from inference.tokenizer import load_tokenizer
from inference.tokenizer.json_tokenizer import read_json_tokenizer

ROOT = Path(__file__).resolve().parent.parent / "goldens" / "tokenizers"
TEXTS = ["Hello", "Once upon a time there was", ""]


def test_lists() -> None:
    tokenizer = load_tokenizer(ROOT / "spm")
    one = tokenizer("Hello")
    assert one["input_ids"] == tokenizer.encode("Hello")
    assert one["attention_mask"] == [1] * len(one["input_ids"])
    several = tokenizer(TEXTS)
    assert several["input_ids"] == [tokenizer.encode(text) for text in TEXTS]
    assert tokenizer([])["input_ids"] == []


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(side: str) -> None:
    tokenizer = load_tokenizer(ROOT / "spm", settings={"padding_side": side})
    rows = [tokenizer.encode(text) for text in TEXTS]
    for padding, length in (
        (True, max(map(len, rows))),
        ("longest", max(map(len, rows))),
        ("max_length", 40),
    ):
        got = tokenizer(TEXTS, padding=padding, max_length=40)
        for row, ids, mask in zip(rows, got["input_ids"], got["attention_mask"], strict=True):
            pad = [500] * (length - len(row))
            ones, zeros = [1] * len(row), [0] * len(pad)
            assert ids == (pad + row if side == "left" else row + pad)
            assert mask == (zeros + ones if side == "left" else ones + zeros)


def test_mindformers_form() -> None:
    tokenizer = load_tokenizer(ROOT / "spm_and_json")
    ids = tokenizer(["I love", "The"], max_length=24, padding="max_length")["input_ids"]
    assert [len(row) for row in ids] == [24, 24]
    # No pad token there: the unknown token stands in, as MindFormers' Llama tokenizer has it.
    assert ids[1][-1] == tokenizer.unk_token_id


def test_truncation_keeps_the_tokens_around_the_text() -> None:
    tokenizer = load_tokenizer(ROOT / "spm", settings={"add_eos_token": True})
    whole = tokenizer.encode(TEXTS[1])
    got = tokenizer(TEXTS[1], truncation=True, max_length=4)["input_ids"]
    assert got == [*whole[:3], 2]
    assert tokenizer(TEXTS[1], truncation=True, max_length=99)["input_ids"] == whole
    assert tokenizer(TEXTS[1], max_length=4)["input_ids"] == whole
    bare = tokenizer(TEXTS[1], truncation=True, max_length=4, add_special_tokens=False)
    assert bare["input_ids"] == whole[1:5]


def test_arrays() -> None:
    tokenizer = load_tokenizer(ROOT / "llama3")
    got = tokenizer(TEXTS, padding=True, return_tensors="np")
    assert got["input_ids"].dtype == np.int32
    assert got["input_ids"].shape == got["attention_mask"].shape
    assert tokenizer("Hello", return_tensors="np")["input_ids"].shape[0] == 1
    row = got["input_ids"][1]
    assert tokenizer.decode(row) == TEXTS[1]
    assert tokenizer.decode(row[1]) == tokenizer.decode(int(row[1])) == tokenizer.decode([row[1]])
    assert tokenizer.batch_decode(got["input_ids"]) == TEXTS


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"padding": "max_length"}, "max_length"),
        ({"truncation": True}, "max_length"),
        ({"padding": "top"}, "padding is 'top'"),
        ({"return_tensors": "pt"}, "return_tensors is 'pt'"),
        ({"return_tensors": "np"}, "give padding=True"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        load_tokenizer(ROOT / "spm")(TEXTS, **arguments)


def test_nothing_to_pad_with() -> None:
    path = ROOT / "llama3" / "tokenizer.json"
    with pytest.raises(TokenizerError, match="no token to pad with; set pad_token"):
        read_json_tokenizer(path)(TEXTS, padding=True)
