"""Rows from arguments, standard input and files: read one at a time, numbered, each with its place."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import sys
import threading
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.errors import InputError
from inference.inputs import RowStream, files, open_rows
from inference.inputs.prompts import Prompt, RowError


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def prompts(rows: RowStream) -> list[Prompt | str]:
    """Every row's prompt, or what is wrong with it."""
    found: list[Prompt | str] = []
    for number, row in enumerate(rows):
        assert row.number == number == rows.count - 1
        try:
            found.append(row.parse())
        except InputError as error:
            assert str(error).startswith(row.where)
            found.append(str(error))
    return found


def texts(rows: RowStream) -> list[str | None]:
    return [prompt if isinstance(prompt, str) else prompt.text for prompt in prompts(rows)]


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch):
    def give(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))

    return give


def test_texts_keep_their_order_and_spaces() -> None:
    found = prompts(open_rows(["  one ", "two\nlines", "三つ 🙂"]))
    assert [prompt.text for prompt in found] == ["  one ", "two\nlines", "三つ 🙂"]
    assert [prompt.custom_id for prompt in found] == ["0", "1", "2"]
    assert [prompt.where for prompt in found] == ["prompt 1", "prompt 2", "prompt 3"]
    assert [prompt.text for prompt in open_rows(["a", "b"]).arguments] == ["a", "b"]


def test_a_text_file_is_a_prompt_a_line(tmp_path: Path) -> None:
    path = write(tmp_path / "p.txt", "\ufeffeins\r\n\n  \nzwei  \n\u3000\n\tdrei\u2028vier\x0bfünf")
    rows = open_rows([path])
    found = prompts(rows)
    assert [prompt.text for prompt in found] == ["eins", "zwei  ", "\tdrei\u2028vier\x0bfünf"]
    assert rows.blank_lines == 3
    assert [prompt.where for prompt in found] == [f"{path}:1", f"{path}:4", f"{path}:6"]


@given(
    st.lists(
        st.text(st.characters(blacklist_characters="\n\r", blacklist_categories=("Cs",))).filter(
            lambda t: t.strip() and not t.startswith("\ufeff")
        ),
        min_size=1,
    ),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    st.booleans(),
)
def test_any_lines_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], end: str, last: bool, packed: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.txt"
    data = (end.join(lines) + (end if last else "")).encode()
    rows = open_rows([write(path, gzip.compress(data) if packed else data)])
    assert texts(rows) == lines and rows.blank_lines == 0


def test_stdin(stdin) -> None:
    stdin("one\n\nzwölf".encode())
    rows = open_rows(["first", "-"])
    found = prompts(rows)
    assert [prompt.text for prompt in found] == ["first", "one", "zwölf"] and rows.blank_lines == 1
    assert found[2].where == "standard input:3"


@pytest.mark.parametrize("first", [b"a\n", b"(\n", b"(\xb5\n", b"\x1f\n", b"\n", b"\x28\xb5\x2f\n"])
def test_stdin_is_read_as_it_arrives(monkeypatch: pytest.MonkeyPatch, first: bytes) -> None:
    """A short line is a row before the next is typed, also where it begins like a compressed file."""
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as source:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=source))
        os.write(writer, first + b"b\n")
        rows = iter(open_rows(["-"]))
        seen: list[Any] = []
        waiting = threading.Thread(
            target=lambda: seen.extend(next(rows) for _ in range(1 + (first != b"\n"))), daemon=True
        )
        waiting.start()
        waiting.join(5)
        os.close(writer)
        assert seen and seen[-1].parse().text == "b"


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_stdin_of_other_formats(stdin, form: str) -> None:
    stdin(b'{"prompt": "a"}\n' if form == "jsonl" else b'prompt\n"a"\n')
    assert texts(open_rows(["-"], form)) == ["a"]


def test_a_jsonl_file(tmp_path: Path) -> None:
    rows = [
        {"prompt": "text", "custom_id": "a", "max_new_tokens": 3, "stop": ["x"]},
        {"prompt": [1, 2, 3]},
        {"messages": [{"role": "user", "content": "hi"}], "custom_id": 7, "seed": 0},
    ]
    path = write(tmp_path / "p.jsonl", "\n".join(json.dumps(row) for row in rows) + "\n")
    stream = open_rows([path])
    assert not stream.texts_only
    first, second, third = prompts(stream)
    assert (first.text, first.custom_id, first.settings) == ("text", "a", {"max_new_tokens": 3, "stop": ["x"]})
    assert (second.token_ids, second.custom_id, second.text) == ((1, 2, 3), "1", None)
    assert (third.messages, third.custom_id) == (({"role": "user", "content": "hi"},), "7")
    assert dict(third.settings) == {"seed": 0}


def test_bad_rows_are_reported_and_the_others_continue(tmp_path: Path) -> None:
    lines = [b'{"prompt": "a"}', b"{", b'{"prompt": "caf\xe9"}', b"", b'{"prompt": "b"}', b'{"promt": "c"}']
    path = write(tmp_path / "p.jsonl", b"\n".join(lines))
    a, no_json, no_utf8, b, unknown = prompts(open_rows([path]))
    assert (a.text, b.text) == ("a", "b")
    assert no_json.startswith(f"{path}:2: not JSON")
    assert no_utf8 == f"{path}:3: byte 0xE9 is not UTF-8; save it as UTF-8"
    assert unknown.startswith(f"{path}:6: unknown generation setting 'promt'")


def test_a_line_that_is_too_long_is_one_bad_row(tmp_path: Path) -> None:
    path = write(tmp_path / "p.txt", "a\n" + "x" * 350 + "\n" + "y" * 99 + "\nb\n")
    first, long, longest, last = texts(open_rows([path], max_line_bytes=100))
    assert (first, longest, last) == ("a", "y" * 99, "b")
    assert long.startswith(f"{path}:2: this line is longer than")


class TestTables:
    def test_csv(self, tmp_path: Path) -> None:
        table = '\ufeffid,question,note\nx,"one, with\nnewline",1\n\n7,plain\n,third,z\n'
        path = write(tmp_path / "t.csv", table)
        rows = open_rows([path], prompt_column="question", id_column="id")
        first, second, third = prompts(rows)
        assert [(p.text, p.custom_id, p.where) for p in (first, second, third)] == [
            ("one, with\nnewline", "x", f"{path}:2"),
            ("plain", "7", f"{path}:5"),
            ("third", "2", f"{path}:6"),
        ]

    def test_quotes_that_do_not_fit(self, tmp_path: Path) -> None:
        """Rows that a quote swallows are not made into one long prompt."""
        table = 'prompt,n\n"a "b" c",1\nsays "hi",2\n"never closed,3\nd,4\ne,5\n'
        rows = list(open_rows([write(tmp_path / "t.csv", table)]))
        assert [row.line for row in rows] == [2, 3, 4]
        assert rows[1].parse().text == 'says "hi"'
        for row in (rows[0], rows[2]):
            with pytest.raises(RowError, match=rf"t.csv:{row.line}: not CSV \(.*belongs in quotes"):
                row.parse()

    @pytest.mark.parametrize(
        ("header", "message"),
        [
            ("prompt;n", "no column 'prompt'; its first line is 'prompt;n': columns must be separated by commas"),
            ("prompt,n,prompt", "has 2 columns 'prompt'; give each a name of its own"),
        ],
    )
    def test_headers_that_do_not_fit(self, tmp_path: Path, header: str, message: str) -> None:
        with pytest.raises(InputError, match=message):
            open_rows([write(tmp_path / "t.csv", f"{header}\na;b\n")])

    def test_bad_rows_of_csv(self, tmp_path: Path) -> None:
        path = write(tmp_path / "t.csv", b"n,prompt\n1,a\n2\n3,caf\xe9\n4,\n5,b\n")
        a, short, latin, empty, b = texts(open_rows([path]))
        assert (a, b) == ("a", "b")
        assert short.startswith(f"{path}:3: this row has 1 of 2 columns")
        assert latin == f"{path}:4: byte 0xE9 is not UTF-8; save it as UTF-8"
        assert empty.startswith(f"{path}:5: the prompt is empty")

    @given(
        st.lists(st.text(st.characters(blacklist_categories=("Cs", "Cc"))).filter(str.strip), min_size=1, max_size=5)
    )
    def test_any_cells_are_read_back(self, tmp_path_factory: pytest.TempPathFactory, cells: list[str]) -> None:
        quoted = "".join('x,"{}"\n'.format(cell.replace('"', '""')) for cell in cells)
        path = write(tmp_path_factory.getbasetemp() / "any.csv", f"n,prompt\n{quoted}")
        assert texts(open_rows([path])) == cells

    @pytest.mark.parametrize("column", ["promt", "other"])
    def test_a_missing_column(self, tmp_path: Path, column: str) -> None:
        path = write(tmp_path / "t.csv", "prompt,n\na,1\n")
        hint = "did you mean 'prompt'" if column == "promt" else "--prompt_column: prompt, n"
        with pytest.raises(InputError, match=f"t.csv has no column '{column}'; .*{hint}"):
            open_rows([path], prompt_column=column)

    def test_parquet(self, tmp_path: Path) -> None:
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        path = str(tmp_path / "t.parquet")
        columns = {"q": ["one", None, "three"] * 300, "id": [f"r{i}" for i in range(900)], "x": [1] * 900}
        parquet.write_table(pyarrow.table(columns), path)
        rows = open_rows([path], prompt_column="q", id_column="id")
        assert rows.expected() == 900
        found = prompts(rows)
        assert [(p.text, p.custom_id) for p in (found[0], found[899])] == [("one", "r0"), ("three", "r899")]
        assert found[1].startswith(f"{path}:2: no prompt in this row")
        ids = str(tmp_path / "ids.parquet")
        parquet.write_table(pyarrow.table({"prompt": [[1, 2], [3]]}), ids)
        assert [p.token_ids for p in prompts(open_rows([ids]))] == [(1, 2), (3,)]
        with pytest.raises(InputError, match="has no column 'z'"):
            open_rows([path], prompt_column="z")
        with pytest.raises(InputError, match="is not a .parquet file, or is damaged"):
            open_rows([write(tmp_path / "bad.parquet", "PAR1")])
        with pytest.raises(InputError, match="from standard input"):
            open_rows(["-"], "parquet")

    def test_parquet_without_pyarrow(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
        with pytest.raises(InputError, match="t.parquet: .parquet needs the package pyarrow; pip install"):
            open_rows([write(tmp_path / "t.parquet", "")])


class TestCompressed:
    ROWS = "".join(json.dumps({"prompt": f"row {i}"}) + "\n" for i in range(5000)).encode()

    def test_gzip(self, tmp_path: Path) -> None:
        # Two members, as `cat a.gz b.gz` makes them; and a name that does not tell.
        half = len(self.ROWS) // 2
        packed = gzip.compress(self.ROWS[:half]) + gzip.compress(self.ROWS[half:])
        for name in ("p.jsonl.gz", "p.jsonl"):
            found = texts(open_rows([write(tmp_path / name, packed)]))
            assert found == [f"row {i}" for i in range(5000)]

    def test_zstd(self, tmp_path: Path) -> None:
        zstandard = pytest.importorskip("zstandard")
        half = len(self.ROWS) // 2
        packed = zstandard.compress(self.ROWS[:half]) + zstandard.compress(self.ROWS[half:])
        assert texts(open_rows([write(tmp_path / "p.jsonl.zst", packed)])) == [f"row {i}" for i in range(5000)]
        self.cut_off(write(tmp_path / "cut.jsonl.zst", packed[:-20]))
        with pytest.raises(InputError, match="p.txt is damaged"):
            texts(open_rows([write(tmp_path / "p.txt", files.ZSTD + b"nonsense" * 9)]))

    def test_zstd_without_the_package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "zstandard", None)
        with pytest.raises(InputError, match="p.txt.zst is compressed with zstd, .* zstandard; pip install zstandard"):
            texts(open_rows([write(tmp_path / "p.txt.zst", files.ZSTD)]))

    def test_truncated_gzip(self, tmp_path: Path) -> None:
        self.cut_off(write(tmp_path / "cut.jsonl.gz", gzip.compress(self.ROWS)[:-20]))

    @staticmethod
    def cut_off(path: str) -> None:
        """Rows before the end are given, and then the want of it is told."""
        found = []
        with pytest.raises(InputError, match=r"cut\.jsonl\.\w+ is damaged: .*; it may have been cut off"):
            for row in open_rows([path]):
                found.append(row.parse().text)
        assert len(found) > 1000 and found == [f"row {i}" for i in range(len(found))]

    def test_stdin(self, stdin) -> None:
        stdin(gzip.compress(b"a\nb\n"))
        assert texts(open_rows(["-"])) == ["a", "b"]


def test_the_expected_number_of_rows(tmp_path: Path, stdin) -> None:
    path = write(tmp_path / "p.txt", "".join(f"row number {i:06}\n" for i in range(100_000)))
    rows = open_rows([path, path])
    seen = iter(rows)
    for _ in range(60_000):
        next(seen)
    assert 185_000 < rows.expected() <= 200_000
    assert sum(1 for _ in seen) == 140_000 and rows.expected() == 200_000
    assert open_rows(["a", "b"]).expected() == 2
    stdin(b"a\n")
    assert open_rows(["-"]).expected() is None


def test_files_without_a_prompt(tmp_path: Path) -> None:
    empty, blank = write(tmp_path / "e.txt", ""), write(tmp_path / "b.jsonl", "\n \n")
    rows = open_rows([empty, "x", blank])
    assert texts(rows) == ["x"] and rows.empty_files == [empty, blank]


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.jsonl", "no/such/dir/prompts.txt", "t.parquet", "p.csv.gz"])
def test_a_missing_file_is_not_a_prompt(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="does not exist"):
        open_rows([str(tmp_path / name)])


def test_a_missing_file_with_a_near_name(tmp_path: Path) -> None:
    write(tmp_path / "prompts.jsonl", "{}")
    with pytest.raises(InputError, match=r"did you mean '.*prompts\.jsonl'"):
        open_rows([str(tmp_path / "prompt.jsonl")])


def test_a_file_of_another_name(tmp_path: Path) -> None:
    path = write(tmp_path / "prompts.dat", "a\nb\n")
    with pytest.raises(InputError, match="--input_format"):
        open_rows([path])
    assert texts(open_rows([path], "txt")) == ["a", "b"]
    (tmp_path / "d.txt").mkdir()
    with pytest.raises(InputError, match="does not exist"):
        open_rows([str(tmp_path / "d.txt")])


@pytest.mark.parametrize("values", [[], [""], [" \t"]])
def test_no_prompt(values: list[str]) -> None:
    with pytest.raises(InputError, match="prompt"):
        open_rows(values)


class TestBounds:
    """Work and memory are bounded whatever a file holds."""

    @staticmethod
    def bomb(kind: str, data: bytes) -> bytes:
        if kind == "gzip":
            return gzip.compress(data, 1)
        return bytes(pytest.importorskip("zstandard").ZstdCompressor().compress(data))

    @pytest.mark.parametrize("kind", ["zstd", "gzip"])
    def test_a_decompression_bomb_is_a_bad_row_in_little_memory(self, tmp_path: Path, kind: str) -> None:
        path = write(tmp_path / "b.txt", self.bomb(kind, b"a\n" + b"x" * (24 << 20) + b"\nb\n"))
        assert Path(path).stat().st_size < 200_000
        rows = open_rows([path], max_line_bytes=2 << 20)
        tracemalloc.start()
        found = texts(rows)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (found[0], found[2]) == ("a", "b") and "longer than 2,097,152 bytes" in str(found[1])
        # The line that is kept and the one that is read, in pieces and joined; a chunk of 8 MiB, likewise.
        assert peak < (3 * 2 + 2 * 8 + 2) << 20

    @pytest.mark.parametrize("kind", ["zstd", "gzip"])
    def test_the_work_of_decompression_grows_with_the_data(self, tmp_path: Path, kind: str) -> None:
        def seconds(size: int) -> float:
            path = write(tmp_path / "b.txt", self.bomb(kind, b"x" * size))
            started = time.process_time()
            assert "longer than" in str(texts(open_rows([path], max_line_bytes=1 << 20))[0])
            return time.process_time() - started

        assert seconds(16 << 20) < 20 * max(seconds(4 << 20), 0.02)

    @pytest.mark.parametrize("name", ["b.txt", "b.jsonl", "b.csv"])
    @pytest.mark.parametrize(("blank", "count"), [(b"\n", 10_010), (b" " * 99 + b"\n", 1100)])
    def test_blank_lines_without_end_end_the_input(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, blank: bytes, count: int
    ) -> None:
        monkeypatch.setattr(files, "BLANK_LINES", 10_000)
        first = b'{"prompt": "a"}\n' if name == "b.jsonl" else b"prompt\n"
        path = write(tmp_path / name, self.bomb("gzip", first + blank * count))
        with pytest.raises(InputError, match=rf"{name}:[0-9]+: [0-9,]+ blank lines in a row"):
            texts(open_rows([path], max_line_bytes=100_000))

    def test_an_endless_line_ends_the_input(self, tmp_path: Path) -> None:
        path = write(tmp_path / "b.txt", b"a\n" + b"x" * 20_000)
        with pytest.raises(InputError, match="b.txt:2: a line of more than 16 times input.max_line_bytes"):
            texts(open_rows([path], max_line_bytes=1000))

    def test_a_long_line_of_csv_is_a_bad_row(self, tmp_path: Path) -> None:
        path = write(tmp_path / "t.csv", "prompt,n\na,1\nb," + "1," * 300 + "\nc,3\n")
        a, long, c = texts(open_rows([path], max_line_bytes=100))
        assert (a, c) == ("a", "c") and "t.csv:3: this line is longer than 100 bytes" in str(long)


class TestPatterns:
    def test_the_files_that_a_pattern_matches(self, tmp_path: Path) -> None:
        for name in ("b.txt", "a.txt", "c.jsonl"):
            write(tmp_path / name, f"from {name}\n")
        (tmp_path / "deep").mkdir()
        write(tmp_path / "deep" / "d.txt", "deep\n")
        assert texts(open_rows([f"{tmp_path}/*.txt", "2 * 3 ="])) == ["from a.txt", "from b.txt", "2 * 3 ="]
        assert texts(open_rows([f"{tmp_path}/**/*.txt"])) == ["from a.txt", "from b.txt", "deep"]
        assert texts(open_rows([f"{tmp_path}/[ab]*"], "txt")) == ["from a.txt", "from b.txt"]

    def test_a_pattern_that_matches_nothing(self, tmp_path: Path) -> None:
        for pattern in (f"{tmp_path}/*.txt", f"{tmp_path}/part-*", "no/such/*.jsonl"):
            with pytest.raises(InputError, match="matches no file"):
                open_rows([pattern])

    @pytest.mark.parametrize("prompt", ["2*3=", "a*b/c", "What is [x]?", "why? /tmp/* is a path", "*"])
    def test_prompts_with_wildcards_stay_prompts(self, prompt: str) -> None:
        assert texts(open_rows([prompt])) == [prompt]

    def test_a_directory_is_not_a_prompt(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"is a directory; name a file of prompts \(.txt, .* there is none in it"):
            open_rows([f"{tmp_path}/"])
        for name in ("a.jsonl", "b.jsonl.gz", "c.txt", "notes.md"):
            (tmp_path / name).touch()
        with pytest.raises(InputError, match=r"is a directory; name its files: '.*/\*.jsonl'"):
            open_rows([f"{tmp_path}/"])

    @pytest.mark.parametrize(
        ("url", "hint"),
        [
            (
                "https://example.com/prompts.txt",
                "download it first, such as with curl -LO https://example.com/prompts.txt",
            ),
            ("http://hub/p.jsonl.gz?download=true", "curl -LO http://hub/p.jsonl.gz?download=true"),
            ("s3://bucket/prompts", "or use --run_mode pipeline, which reads Beam's file systems"),
            ("file:///tmp/prompts.txt", "give its path"),
        ],
    )
    def test_an_error_about_a_url_keeps_its_slashes_and_has_a_hint(self, url: str, hint: str) -> None:
        with pytest.raises(InputError) as caught:
            open_rows([url])
        message = f"--predict_data: {url} is a URL, and prompts come from files of this machine; "
        assert str(caught.value).startswith(message)
        assert str(caught.value).endswith(hint)

    @pytest.mark.parametrize("prompt", ["https://example.com", "see s3://bucket/a", "a://b c"])
    def test_texts_with_urls_stay_prompts(self, prompt: str) -> None:
        assert texts(open_rows([prompt])) == [prompt]


class TestExpected:
    @pytest.mark.parametrize("name", ["p.txt", "p.txt.gz", "p.csv", "p.jsonl"])
    def test_rows_of_small_files_are_counted(self, tmp_path: Path, name: str) -> None:
        lines = {"p.csv": "prompt\n" + "row\n" * 1000, "p.jsonl": '{"prompt": "x"}\n\n' * 1000}
        data = lines.get(name, "row\n" * 1000).encode()
        rows = open_rows([write(tmp_path / name, gzip.compress(data) if name.endswith("gz") else data), "and one"])
        assert rows.expected() == rows.known_count == 1001

    @pytest.mark.parametrize("packed", [False, True])
    def test_the_estimate_counts_what_was_parsed(self, tmp_path: Path, packed: bool) -> None:
        """Equal rows: after any number of them the estimate is the true number, read-ahead of the file aside."""
        chance = random.Random(1)
        data = "".join(f"{chance.getrandbits(3200):0800x}\n" for _ in range(6000)).encode()
        rows = open_rows([write(tmp_path / "p.txt", gzip.compress(data, 1) if packed else data)])
        assert rows.known_count is None
        for row in rows:
            if row.number in (10, 300, 5000) and not (packed and row.number == 10):
                # gzip takes 8 or 128 KiB at once, which are up to 300 of these rows.
                assert rows.expected() == pytest.approx(6000, rel=0.01 if not packed else 350 / row.number)
        assert rows.count == 6000
