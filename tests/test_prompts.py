"""Prompts from arguments, standard input and files; every mistake names its file and line."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.errors import InputError
from inference.prompts import PromptBatch, parse_row, read_prompts


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def texts(batch: PromptBatch) -> list[str | None]:
    return [prompt.text for prompt in batch.prompts]


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch):
    def give(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))

    return give


def test_texts_keep_their_order_and_spaces() -> None:
    batch = read_prompts(["  one ", "two\nlines", "三つ 🙂"])
    assert texts(batch) == ["  one ", "two\nlines", "三つ 🙂"]
    assert [prompt.custom_id for prompt in batch.prompts] == ["0", "1", "2"]
    assert [prompt.where for prompt in batch.prompts] == ["prompt 1", "prompt 2", "prompt 3"]


def test_a_text_file_is_a_prompt_a_line(tmp_path: Path) -> None:
    path = write(tmp_path / "p.txt", "\ufeffeins\r\n\n  \nzwei  \n\tdrei\u2028vier\x0bfünf")
    batch = read_prompts([path])
    assert texts(batch) == ["eins", "zwei  ", "\tdrei\u2028vier\x0bfünf"]
    assert batch.blank_lines == 2
    assert [prompt.where for prompt in batch.prompts] == [f"{path}:1", f"{path}:4", f"{path}:5"]


@given(
    st.lists(
        st.text(st.characters(blacklist_characters="\n\r", blacklist_categories=("Cs",))).filter(
            lambda t: t.strip() and not t.startswith("\ufeff")
        ),
        min_size=1,
    ),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)
def test_any_lines_come_back(tmp_path_factory: pytest.TempPathFactory, lines: list[str], end: str, last: bool) -> None:
    path = tmp_path_factory.getbasetemp() / "any.txt"
    write(path, end.join(lines) + (end if last else ""))
    batch = read_prompts([str(path)])
    assert texts(batch) == lines and batch.blank_lines == 0


def test_stdin(stdin) -> None:
    stdin("one\n\nzwölf".encode())
    batch = read_prompts(["first", "-"])
    assert texts(batch) == ["first", "one", "zwölf"] and batch.blank_lines == 1
    assert batch.prompts[2].where == "standard input:3"


def test_a_jsonl_file(tmp_path: Path) -> None:
    rows = [
        {"prompt": "text", "custom_id": "a", "max_new_tokens": 3, "stop": ["x"]},
        {"prompt": [1, 2, 3]},
        {"messages": [{"role": "user", "content": "hi"}], "custom_id": 7, "seed": 0},
    ]
    path = write(tmp_path / "p.jsonl", "\n".join(json.dumps(row) for row in rows) + "\n")
    first, second, third = read_prompts([path]).prompts
    assert (first.text, first.custom_id, first.settings) == ("text", "a", {"max_new_tokens": 3, "stop": ["x"]})
    assert (second.token_ids, second.custom_id, second.text) == ((1, 2, 3), "1", None)
    assert (third.messages, third.custom_id) == (({"role": "user", "content": "hi"},), "7")
    assert dict(third.settings) == {"seed": 0}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "f:1: not JSON"),
        ("[" * 100_000, "f:1: not JSON"),
        ('"text"', "f:1: a row must be an object, got str"),
        ("[1]", "f:1: a row must be an object, got list"),
        ("{}", "f:1: no prompt in this row"),
        ('{"prompt": null}', "f:1: no prompt in this row"),
        ('{"prompt": "a", "messages": []}', "f:1: both prompt and messages"),
        ('{"prompt": ""}', "f:1: the prompt is empty"),
        ('{"prompt": " \\n"}', "f:1: the prompt is empty"),
        ('{"prompt": []}', "f:1: the prompt is empty"),
        ('{"prompt": 3}', "f:1: prompt must be text or a list of token ids"),
        ('{"prompt": ["a"]}', "f:1: prompt must be text or a list of token ids"),
        ('{"prompt": [1, -1]}', "f:1: prompt must be text or a list of token ids"),
        ('{"prompt": [true]}', "f:1: prompt must be text or a list of token ids"),
        ('{"prompt": [1.0]}', "f:1: prompt must be text or a list of token ids"),
        ('{"messages": []}', "f:1: messages must be a list of objects"),
        ('{"messages": "hi"}', "f:1: messages must be a list of objects"),
        ('{"messages": [{"content": "hi"}]}', "f:1: messages must be a list of objects"),
        ('{"prompt": "a", "custom_id": [1]}', "f:1: custom_id must be text or a number"),
        ('{"prompt": "a", "custom_id": true}', "f:1: custom_id must be text or a number"),
        ('{"prompt": "a", "max_new_token": 3}', "f:1: unknown .*did you mean 'max_new_tokens'"),
        ('{"prompt": "a", "promt": "b"}', "f:1: unknown .*did you mean 'prompt'"),
        ('{"prompt": "a", "temperature": -1}', "f:1: .*temperature"),
        ('{"prompt": "a", "max_new_tokens": "many"}', "f:1: .*max_new_tokens"),
        ('{"prompt": "a", "num_beams": 4}', "f:1: .*num_beams"),
        ('{"prompt": "a", "self": 1}', "f:1: "),
    ],
)
def test_rows_that_make_no_sense(line: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse_row(line, "f:1", "0")
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)


@given(st.text() | st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists).map(json.dumps))
def test_any_line_is_a_row_or_an_input_error(line: str) -> None:
    try:
        prompt = parse_row(line, "f:1", "0")
    except InputError as error:
        assert str(error).startswith("f:1: ")
    else:
        assert sum(value is not None for value in (prompt.text, prompt.token_ids, prompt.messages)) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"good\nb\xffd\n", r"p\.txt:2: byte 0xFF is not UTF-8"),
        ("\u00e4".encode("latin-1"), r"p\.txt:1: byte 0xE4 is not UTF-8"),
        ("\ufeffx".encode("utf-16"), r"p\.txt:1: byte 0xF[EF] is not UTF-8"),
        (b"", "holds no prompt"),
        (b"\n  \n", "holds no prompt"),
    ],
)
def test_text_files_that_cannot_be_used(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_prompts([write(tmp_path / "p.txt", content)])


def test_stdin_that_cannot_be_used(stdin) -> None:
    stdin(b"a\n\xc3")
    with pytest.raises(InputError, match="standard input:2: byte 0xC3"):
        read_prompts(["-"])
    stdin(b" \n")
    with pytest.raises(InputError, match="there is no prompt"):
        read_prompts(["-"])


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.jsonl", "no/such/dir/prompts.txt"])
def test_a_missing_file_is_no_prompt(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_prompts([str(tmp_path / name)])


def test_a_missing_file_with_a_near_name(tmp_path: Path) -> None:
    write(tmp_path / "prompts.jsonl", "{}")
    with pytest.raises(InputError, match=r"did you mean '.*prompts\.jsonl'"):
        read_prompts([str(tmp_path / "prompt.jsonl")])


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "d.txt").mkdir()
    with pytest.raises(InputError, match="does not exist"):
        read_prompts([str(tmp_path / "d.txt")])


@pytest.mark.parametrize("values", [[], [""], [" \t"]])
def test_no_prompt(values: list[str]) -> None:
    with pytest.raises(InputError, match="prompt"):
        read_prompts(values)


def test_ids_that_occur_twice(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", '{"prompt": "a", "custom_id": "x"}\n\n{"prompt": "b", "custom_id": "x"}')
    with pytest.raises(InputError, match=r"p\.jsonl:3: custom_id 'x' is that of .*p\.jsonl:1 too"):
        read_prompts([path])


@pytest.mark.timeout(15)
def test_blank_lines_cost_no_more_than_others(tmp_path: Path) -> None:
    """A file of mostly blank lines: half a second, or minutes where time grows with its square."""
    batch = read_prompts([write(tmp_path / "p.txt", "a\n" + "\n" * 1_000_000)])
    assert (len(batch.prompts), batch.blank_lines) == (1, 1_000_000)
