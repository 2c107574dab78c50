"""Which tokens end an answer: the union of what a model's files say, unless the user says it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from inference.config import load_config
from inference.generation.ends import describe_ends, ends_of_answer, with_ends
from inference.generation.model import make_encoder
from inference.inputs.prompts import Prompt
from inference.models.source import ModelSource, resolve
from inference.modes.model_comments import model_as_comments

GOLDENS = Path(__file__).parents[1] / "goldens"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A model whose generation_config.json names one end, config.json another, and the tokenizer two more."""
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(GOLDENS / "qwen2" / name, tmp_path / name)
    for path in (GOLDENS / "tokenizers" / "qwen").iterdir():
        shutil.copyfile(path, tmp_path / path.name)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "eos_token_id": 7, "vocab_size": 10_000}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 7]}))
    return tmp_path


def source_of(directory: Path, **settings: Any) -> ModelSource:
    config = {"pretrained_model_dir": str(directory), "engine": {"random_weights": True}, **settings}
    return resolve(load_config(config))


def test_ends_are_the_union_with_their_reasons(directory: Path) -> None:
    source = source_of(directory)
    tokenizer = source.tokenizer()
    ends = ends_of_answer(source, tokenizer)
    end_of_turn, end_of_text = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")
    assert set(ends) == {5, 7, end_of_turn, end_of_text}
    assert ends[5] == "generation_config.json"
    assert ends[7] == f"generation_config.json, {directory / 'config.json'}"
    assert "the name <|im_end|>" in ends[end_of_turn]  # type: ignore[index]
    assert set(make_encoder(source, tokenizer).generation.eos_token_id) == set(ends)
    assert describe_ends(source, tokenizer)[0] == f"5 {tokenizer.id_to_token(5)}: generation_config.json"


def test_the_users_own_end_token_replaces_all_others(directory: Path) -> None:
    source = source_of(directory, generation_config={"eos_token_id": 9})
    assert ends_of_answer(source, source.tokenizer()) == {9: source.config.origin("generation_config.eos_token_id")}
    assert make_encoder(source, source.tokenizer()).generation.eos_token_id == (9,)


def test_a_rows_own_end_token_replaces_all_others(directory: Path) -> None:
    source = source_of(directory)
    encoder = make_encoder(source, source.tokenizer())
    row = Prompt("a", "row", text="Hello", settings={"eos_token_id": 5})
    assert encoder.encode(0, row).generation.eos_token_id == (5,)
    assert len(encoder.generation.eos_token_id) == 4


def test_a_name_counts_only_as_a_control_token(directory: Path) -> None:
    """`</s>` in a vocabulary may be plain text, as in HTML."""
    source = source_of(directory)
    tokenizer = source.tokenizer()
    end_of_turn = tokenizer.token_to_id("<|im_end|>")
    tokenizer.__dict__["all_special_ids"] = frozenset()
    tokenizer.config.tokens["eos_token"] = None  # type: ignore[index]
    assert end_of_turn not in ends_of_answer(source, tokenizer)


def test_without_a_tokenizer_the_files_alone_count(directory: Path) -> None:
    source = source_of(directory)
    assert set(with_ends(source, None, source.generation).eos_token_id) == {5, 7}


def test_print_config_lists_the_end_tokens() -> None:
    comments = model_as_comments(load_config({"pretrained_model_dir": "demo"}))
    assert comments[0].startswith("# Tokens that end an answer")
    assert any("2 </s>: " in line and "the tokenizer's eos_token" in line for line in comments)
    assert model_as_comments(load_config({"pretrained_model_dir": "org/not-here"})) == []
