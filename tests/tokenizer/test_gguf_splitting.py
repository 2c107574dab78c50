"""How a GGUF file's tokenizer splits text: by llama.cpp's rules, whose ids are in tests/goldens/llama_cpp.

scripts/llama_cpp_goldens.py makes the goldens.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from inference.errors import TokenizerError
from inference.tokenizer import Tokenizer, load_tokenizer
from inference.tokenizer.pre_tokenizers import PRE_TOKENIZERS
from inference.tokenizer.sentencepiece_tokenizer import CONTROL, NORMAL, SPACE, UNKNOWN, USER_DEFINED

GOLDEN = Path(__file__).parents[1] / "goldens" / "llama_cpp" / "splitting.json"
SPLITTING = json.loads(GOLDEN.read_text(encoding="utf-8"))
# Rules that have a golden, and the names that share it.
BY_RULE = {PRE_TOKENIZERS[name]: name for name in SPLITTING["ids"]}


def vocabulary_file(path: Path, **fields: Any) -> Path:
    """A GGUF file that has a tokenizer alone; `fields` by the ends of their names."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in fields.items():
        key = f"tokenizer.ggml.{name}"
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_string(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def byte_pairs(path: Path, name: str | None, **fields: Any) -> Tokenizer:
    """A tokenizer with the golden vocabulary that splits by a rule."""
    rule = PRE_TOKENIZERS.get(name or "default", PRE_TOKENIZERS["default"])
    vocabulary = SPLITTING["vocabularies"]["byte_level" if rule.byte_level else "plain"]
    named = {} if name is None else {"pre": name}
    return load_tokenizer(vocabulary_file(path, model="gpt2", **vocabulary, **named, **fields))


@pytest.mark.parametrize("name", SPLITTING["ids"])
def test_ids_are_those_of_llama_cpp(name: str, tmp_path: Path) -> None:
    tokenizer = byte_pairs(tmp_path / "model.gguf", name)
    assert len(SPLITTING["texts"]) >= 50
    for text, ids in zip(SPLITTING["texts"], SPLITTING["ids"][name], strict=True):
        assert tokenizer.encode(text, add_special_tokens=False) == ids, text


def test_every_rule_has_a_golden() -> None:
    assert set(PRE_TOKENIZERS.values()) == set(BY_RULE)
    assert len(PRE_TOKENIZERS) == 90


def test_a_file_without_a_rule_gets_the_default_and_a_notice(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    tokenizer = byte_pairs(tmp_path / "unnamed.gguf", None)
    text = SPLITTING["texts"][7]
    assert tokenizer.encode(text, add_special_tokens=False) == SPLITTING["ids"]["default"][7]
    assert "unnamed.gguf does not say how its tokenizer splits a text" in capfd.readouterr().err


def test_an_unknown_rule_is_rejected_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"rule 'smolm' .* did you mean 'smollm'\?.*tokenizer_file"):
        byte_pairs(tmp_path / "model.gguf", "smolm")


@pytest.mark.parametrize(("name", "expected"), [("llama-bpe", True), ("tekken", True), ("gpt-2", False)])
def test_bos_is_added_as_llama_cpp_does(name: str, expected: bool, tmp_path: Path) -> None:
    for given in (None, not expected):
        fields = {} if given is None else {"add_bos_token": given}
        tokenizer = byte_pairs(tmp_path / f"{given}.gguf", name, bos_token_id=5, **fields)
        assert (tokenizer.encode("a")[0] == 5) is (expected if given is None else given)


def test_types_as_the_official_converter_writes_them(tmp_path: Path) -> None:
    """llama.cpp's converter marks `<unk>` as CONTROL, and what pads a vocabulary as UNKNOWN."""
    tokens = ["<unk>", "<s>", "</s>", f"{SPACE}a", f"{SPACE}", "a", "[PAD6]", "[PAD7]"]
    types = [CONTROL, CONTROL, CONTROL, NORMAL, NORMAL, NORMAL, UNKNOWN, UNKNOWN]
    path = vocabulary_file(
        tmp_path / "model.gguf",
        model="llama",
        tokens=tokens,
        scores=[0.0, 0.0, 0.0, -1.0, -2.0, -3.0, -1000.0, -1000.0],
        token_type=types,
        bos_token_id=1,
        eos_token_id=2,
        unknown_token_id=0,
    )
    tokenizer = load_tokenizer(path)
    assert len(tokenizer) == 8
    assert tokenizer.encode("a a") == [1, 3, 3]
    assert tokenizer.encode("a z[PAD7]", add_special_tokens=False) == [3, 4, 0, 7]
    assert tokenizer.unk_token_id == 0
    assert tokenizer._types[6] == USER_DEFINED  # type: ignore[attr-defined]
