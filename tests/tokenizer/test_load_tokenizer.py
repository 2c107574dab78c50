"""Finding and reading tokenizers: which file wins, what the settings change, and every way it can fail."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from inference.errors import InputError, TokenizerError
from inference.tokenizer import gguf_tokenizer, load_tokenizer
from inference.tokenizer.json_tokenizer import JsonTokenizer
from inference.tokenizer.sentencepiece_tokenizer import SentencePieceTokenizer
from inference.tokenizer.tokenizer_config import read_tokenizer_config

ROOT = Path(__file__).resolve().parent.parent / "goldens" / "tokenizers"


@pytest.fixture
def spm(tmp_path: Path) -> Path:
    """A directory with a sentencepiece model and nothing beside it."""
    shutil.copy(ROOT / "spm" / "tokenizer.model", tmp_path)
    return tmp_path


@pytest.fixture
def llama3(tmp_path: Path) -> Path:
    """A copy of the Llama 3 case, to change."""
    shutil.copytree(ROOT / "llama3", tmp_path / "llama3")
    return tmp_path / "llama3"


def write(directory: Path, name: str, value: Any) -> None:
    (directory / name).write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


# Which file.


def test_tokenizer_json_takes_precedence_over_tokenizer_model() -> None:
    assert isinstance(load_tokenizer(ROOT / "spm_and_json"), JsonTokenizer)
    assert isinstance(load_tokenizer(str(ROOT / "spm")), SentencePieceTokenizer)
    assert isinstance(load_tokenizer(ROOT / "spm"), SentencePieceTokenizer)


def test_a_yaml_names_the_file(spm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"type": "LlamaTokenizer", "vocab_file": str(spm / "tokenizer.model"), "pad_token": None}
    assert load_tokenizer(None, settings=settings).vocab_size == 500
    assert load_tokenizer(spm, settings={"vocab_file": "tokenizer.model"}).vocab_size == 500
    monkeypatch.chdir(spm)
    assert load_tokenizer(None, settings={"vocab_file": "tokenizer.model"}).vocab_size == 500
    json_file = {"vocab_file": "tokenizer.model", "tokenizer_file": str(ROOT / "qwen" / "tokenizer.json")}
    assert isinstance(load_tokenizer(spm, settings=json_file), JsonTokenizer)


@pytest.mark.parametrize(("name", "text"), [("vocab.json", "{}"), ("tokenizer.model", "IQ== 0\nIg== 1\n")])
def test_tokenizer_json_takes_precedence_over_other_files(llama3: Path, name: str, text: str) -> None:
    write(llama3, name, text)
    assert isinstance(load_tokenizer(None, settings={"vocab_file": llama3 / name}), JsonTokenizer)


def test_the_config_is_beside_the_file_or_in_the_directory(spm: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    write(other, "tokenizer_config.json", {"pad_token": "</s>", "add_bos_token": False})
    tokenizer = load_tokenizer(other, settings={"vocab_file": str(spm / "tokenizer.model")})
    assert tokenizer.pad_token_id == 2
    assert tokenizer.bos_token_id not in tokenizer.encode("Hello")


# What the settings and the small files change.


def test_settings_win_over_files(spm: Path) -> None:
    config = {"add_bos_token": True, "eos_token": "<|end|>", "chat_template": "file"}
    write(spm, "tokenizer_config.json", config)
    settings = {
        "add_bos_token": False,
        "add_eos_token": True,
        "eos_token": {"__type": "AddedToken", "content": "</s>"},
        "chat_template": "settings",
    }
    assert load_tokenizer(spm).eos_token == "<|end|>"
    tokenizer = load_tokenizer(spm, settings=settings)
    assert tokenizer.encode("a")[-1] == tokenizer.eos_token_id == 2
    assert tokenizer.encode("a")[0] != tokenizer.bos_token_id
    assert tokenizer.chat_template == "settings"


def test_special_tokens_map_and_added_tokens(spm: Path) -> None:
    write(spm, "special_tokens_map.json", {"pad_token": {"content": "<x>"}, "eos_token": "<|end|>"})
    write(spm, "added_tokens.json", {"<x>": 500, "<y>": 501})
    write(spm, "tokenizer_config.json", {"eos_token": "</s>", "extra_special_tokens": {"image": "<y>"}})
    tokenizer = load_tokenizer(spm)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (500, 2)
    assert tokenizer.encode("<x><y>", add_special_tokens=False) == [500, 501]
    assert {500, 501} <= tokenizer.all_special_ids


@pytest.mark.parametrize(
    ("config", "before", "after"),
    [
        ({}, ["<|begin|>"], []),
        ({"add_bos_token": False}, [], []),
        ({"add_eos_token": True}, ["<|begin|>"], ["<|eot|>"]),
        ({"add_bos_token": True, "add_eos_token": False}, ["<|begin|>"], []),
    ],
)
def test_bos_and_eos_of_a_json_tokenizer(
    llama3: Path, config: dict[str, Any], before: list[str], after: list[str]
) -> None:
    """The file's post-processor holds until a setting says otherwise."""
    tokenizer = load_tokenizer(llama3, settings=config)
    ids = tokenizer.encode("Hello world", add_special_tokens=False)
    first, last = ([tokenizer.token_to_id(token) for token in tokens] for tokens in (before, after))
    assert tokenizer.encode("Hello world") == [*first, *ids, *last]


def test_tokens_that_only_the_config_has_are_added(llama3: Path) -> None:
    size = len(load_tokenizer(llama3))
    settings = {"pad_token": "<pad>", "additional_special_tokens": ["<tool>"]}
    tokenizer = load_tokenizer(llama3, settings=settings)
    assert tokenizer.encode("<pad><tool>", add_special_tokens=False) == [size, size + 1]
    assert tokenizer.decode([size, size + 1]) == ""


def test_padding_and_truncation_of_the_file_are_ignored(llama3: Path) -> None:
    state = json.loads((llama3 / "tokenizer.json").read_text(encoding="utf-8"))
    state["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    state["padding"] = {
        "strategy": {"Fixed": 99},
        **{"direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "!"},
    }
    write(llama3, "tokenizer.json", state)
    text = "once upon a time there was"
    assert load_tokenizer(llama3).encode(text) == load_tokenizer(ROOT / "llama3").encode(text)


def test_chat_template_files(llama3: Path) -> None:
    write(llama3, "tokenizer_config.json", {"chat_template": [{"name": "default", "template": "config"}]})
    (llama3 / "additional_chat_templates").mkdir()
    write(llama3 / "additional_chat_templates", "tool_use.jinja", "tools")
    tokenizer = load_tokenizer(llama3)
    assert tokenizer.config.chat_templates["tool_use"] == "tools"
    assert tokenizer.chat_template != "config"
    (llama3 / "chat_template.jinja").unlink()
    assert load_tokenizer(llama3).chat_template == "config"
    write(llama3, "tokenizer_config.json", {})
    write(llama3, "chat_template.json", {"chat_template": "older"})
    assert load_tokenizer(llama3).chat_template == "older"


# Failures.


def message(directory: Path | None, settings: dict[str, Any] | None = None) -> str:
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(directory, settings=settings)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_missing(tmp_path: Path) -> None:
    assert "give a model directory or vocab_file" in message(None)
    assert str(tmp_path / "no") in message(tmp_path / "no")
    assert f"no tokenizer in {tmp_path}; it must hold tokenizer.json or tokenizer.model" in message(tmp_path)
    text = message(tmp_path, {"vocab_file": "no.model"})
    assert "vocab_file" in text
    assert str(tmp_path / "no.model") in text


@pytest.mark.parametrize(
    "damage",
    [lambda data: b"", lambda data: data[:-7], lambda data: b"IQ== 0\nIg== 1\n", lambda data: b"\x00" * 99],
)
def test_damaged_model(spm: Path, damage: Callable[[bytes], bytes]) -> None:
    path = spm / "tokenizer.model"
    path.write_bytes(damage(path.read_bytes()))
    assert str(path) in message(spm)


@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: data[:-7], lambda data: b"[]", lambda data: b"\xff\xfe{}"]
)
def test_damaged_json(llama3: Path, damage: Callable[[bytes], bytes]) -> None:
    path = llama3 / "tokenizer.json"
    path.write_bytes(damage(path.read_bytes()))
    assert str(path) in message(llama3)


def test_a_decoder_that_is_not_supported(llama3: Path) -> None:
    state = json.loads((llama3 / "tokenizer.json").read_text(encoding="utf-8"))
    state["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    write(llama3, "tokenizer.json", state)
    assert "decoder of type WordPiece" in message(llama3)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"])
@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, '"x"', "{'a': 1}"])
def test_damaged_small_files(spm: Path, name: str, text: str) -> None:
    write(spm, name, text)
    assert str(spm / name) in message(spm)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bos_token", 1),
        ("eos_token", ["</s>"]),
        ("add_bos_token", "yes"),
        ("legacy", 3),
        ("padding_side", "top"),
        ("added_tokens_decoder", {"x": {"content": "<y>"}}),
        ("added_tokens_decoder", {"500": {"special": True}}),
        ("added_tokens_decoder", [1]),
        ("additional_special_tokens", "<y>"),
        ("chat_template", [{"name": "default"}]),
        ("chat_template", 3),
    ],
)
def test_wrong_values(spm: Path, key: str, value: Any) -> None:
    write(spm, "tokenizer_config.json", {key: value})
    assert str(spm / "tokenizer_config.json") in message(spm)


def test_a_missing_bos(spm: Path) -> None:
    tokenizer = load_tokenizer(ROOT / "qwen", settings={"add_bos_token": True})
    with pytest.raises(TokenizerError, match="add_bos_token is true but the tokenizer has no bos_token"):
        tokenizer.encode("a")


@pytest.mark.parametrize("name", ["spm", "llama3"])
def test_invalid_texts(name: str) -> None:
    tokenizer = load_tokenizer(ROOT / name)
    with pytest.raises(InputError, match=r"half of a character \(U\+D800\) at position 1"):
        tokenizer.encode("a\ud800b")
    with pytest.raises(InputError, match="a prompt is bytes, not text"):
        tokenizer.encode(b"a")  # type: ignore[arg-type]


def test_importing_the_package_loads_none_of_the_libraries() -> None:
    code = (
        "import sys, inference.tokenizer\n"
        "names = ('mindspore', 'sentencepiece', 'tokenizers', 'jinja2', 'numpy')\n"
        "print([name for name in names if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_a_t5_tokenizer_ends_its_texts_and_counts_its_gaps_backwards(tmp_path: Path) -> None:
    """A spiece.model without bos; <extra_id_0> has the last id, as transformers' T5Tokenizer has it."""
    demo = Path(__file__).parents[2] / "inference" / "demo_t5"
    plain = load_tokenizer(demo)
    assert plain.encode("the big house")[-1] == plain.eos_token_id == 1
    assert plain.decode(plain.encode("the big house")) == "the big house"
    assert plain.encode("the big house", add_special_tokens=False)[-1] != 1
    (tmp_path / "spiece.model").write_bytes((demo / "spiece.model").read_bytes())
    gaps = [f"<extra_id_{index}>" for index in range(3)]
    settings = {"additional_special_tokens": gaps, "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    tokenizer = load_tokenizer(tmp_path)
    assert [tokenizer.token_to_id(gap) for gap in gaps] == [len(plain) + 2, len(plain) + 1, len(plain)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"added_tokens_decoder": {"5": {"content": "x", "special": "yes"}}},
            "special in .* is 'yes'; it must be ",
        ),
        ({"added_tokens_decoder": {"5": {"content": "x", "lstrip": 3}}}, "lstrip in .* is 3; it must be true or false"),
        (
            {"chat_template": [{"name": 3, "template": "x"}]},
            "or template of chat_template in .* is 3; it must be text",
        ),
        ({"prefix_tokens": [3]}, "prefix_tokens in .* is .3.; it must be a list of texts"),
        ({"add_bos_token": 2}, "add_bos_token in .* is 2; it must be true or false"),
    ],
)
def test_values_of_the_wrong_type(settings, message, tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(TokenizerError, match=message):
        read_tokenizer_config(tmp_path, {}, None)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("bos_token_id", "1", "m.gguf: tokenizer.ggml.bos_token_id is '1'; it must be an integer from 0 to 4294967295"),
        ("scores", [0.0, "x"], "m.gguf: tokenizer.ggml.scores is .*; it must be a list of finite numbers"),
        ("token_type", [1, 1.5], "m.gguf: tokenizer.ggml.token_type is .*; it must be a list of the tokens' types"),
        ("add_bos_token", 1, "m.gguf: tokenizer.ggml.add_bos_token is 1; it must be true or false"),
    ],
)
def test_fields_of_a_gguf_tokenizer_with_the_wrong_type(key, value, message, monkeypatch):
    fields = {"model": "llama", "tokens": ["<unk>", "a"], key: value}
    file = SimpleNamespace(path=Path("m.gguf"), get=lambda name, default=None: fields.get(name.split(".")[-1], default))
    monkeypatch.setattr(gguf_tokenizer, "open_gguf", lambda path: file)
    with pytest.raises(TokenizerError, match=message):
        gguf_tokenizer.read_gguf_tokenizer(Path("m.gguf"), {})
