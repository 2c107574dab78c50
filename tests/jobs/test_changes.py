"""What changes under a job or between its runs is noticed: the save file, its sidecar, and the input."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from test_kill import records, texts, write_rows
from toy_job import toy_job

from inference.errors import InferenceError, InputError
from inference.jobs.row_sets import BLOCK, NumberSet, NumberTable
from inference.jobs.save_file import SaveFile, sidecar_of


class TestSaveFile:
    """Deleted, renamed, replaced or cut while the job runs: exit code 1, and one line says where the records are."""

    @pytest.fixture
    def file(self, tmp_path: Path) -> SaveFile:
        file = SaveFile(tmp_path / "deep" / "out.jsonl" if (tmp_path / "deep").mkdir() is None else tmp_path, {"a": 1})
        file.append(['{"row": 0}', '{"row": 1}'])
        file.commit()
        return file

    @staticmethod
    def lost(file: SaveFile) -> str:
        with pytest.raises(InferenceError) as caught:
            file.commit()
        assert caught.value.exit_code == 1
        message = str(caught.value)
        assert "while the job ran: 2 records had been written to it" in message
        return message

    def test_removed(self, file: SaveFile) -> None:
        file.path.unlink()
        message = self.lost(file)
        assert "was removed" in message and f"they are in {file.path}.rescued" in message
        assert len(Path(f"{file.path}.rescued").read_text().splitlines()) == 2

    def test_removed_with_its_directory(self, file: SaveFile) -> None:
        shutil.rmtree(file.path.parent)
        assert "was removed" in (message := self.lost(file)) and "they are lost" in message

    def test_renamed(self, file: SaveFile) -> None:
        moved = file.path.rename(file.path.with_name("moved.jsonl"))
        assert "was renamed" in (message := self.lost(file)) and f"they are in {moved}" in message

    def test_replaced(self, file: SaveFile) -> None:
        other = file.path.with_name("other")
        other.write_text("x")
        other.rename(file.path)
        assert "they are in" in self.lost(file)

    def test_cut(self, file: SaveFile) -> None:
        os.truncate(file.path, 5)
        assert "was cut to 5 of 22 bytes" in self.lost(file)

    def test_an_unchanged_file_is_accepted(self, file: SaveFile) -> None:
        file.append(['{"row": 2}'])
        file.commit()
        file.commit()
        assert file.num_durable == 3

    def test_the_job_ends_with_it(self, tmp_path: Path) -> None:
        """The file goes when it has its first record; the commit that follows says so."""
        source, out = write_rows(tmp_path / "in.jsonl", 300), tmp_path / "out.jsonl"
        stop = threading.Event()

        def remove() -> None:
            while not stop.is_set():
                if out.exists() and out.stat().st_size:
                    out.unlink()
                    return

        remover = threading.Thread(target=remove)
        remover.start()
        with pytest.raises(InferenceError, match="out.jsonl was removed while the job ran") as caught:
            toy_job([source], str(out))
        stop.set()
        remover.join()
        assert caught.value.exit_code == 1


Change = Callable[[list[str]], list[str]]
CHANGES: dict[str, Change] = {
    "cut": lambda lines: lines[:-3],
    "removed": lambda lines: lines[:3] + lines[4:],
    "swapped": lambda lines: [*lines[:3], lines[4], lines[3], *lines[5:]],
    "inserted": lambda lines: [*lines[:3], lines[0].replace("0", "99"), *lines[3:]],
    "other": lambda lines: [*lines[:3], lines[3].replace("2", "3").replace("3", "33"), *lines[4:]],
}


class TestInput:
    @staticmethod
    def lines(form: str) -> list[str]:
        make = {
            "txt": "row {}",
            "jsonl": '{{"prompt": "row {}"}}',
            "named": '{{"prompt": "row", "custom_id": "name {}"}}',
            "csv": "row {}",
        }[form]
        head = ["prompt"] if form == "csv" else []
        return head + [make.format(number) for number in range(12)]

    @pytest.mark.parametrize("form", ["txt", "jsonl", "named", "csv"])
    @pytest.mark.parametrize("change", CHANGES)
    def test_changed_rows_are_rejected(self, tmp_path: Path, form: str, change: str) -> None:
        source = tmp_path / f"in.{'jsonl' if form == 'named' else form}"
        out = tmp_path / "out.jsonl"
        lines = self.lines(form)
        source.write_text("\n".join(lines) + "\n")
        toy_job([str(source)], str(out), max_new_tokens=2)
        before = out.read_bytes()
        source.write_text("\n".join(CHANGES[change](lines)) + "\n")
        with pytest.raises(InputError, match="the input has changed") as caught:
            toy_job([str(source)], str(out), max_new_tokens=2, resume=True)
        assert caught.value.exit_code == 2 and out.read_bytes() == before

    @pytest.mark.parametrize("form", ["txt", "jsonl", "named", "csv"])
    def test_rows_may_be_added(self, tmp_path: Path, form: str) -> None:
        source, out = tmp_path / f"in.{'jsonl' if form == 'named' else form}", tmp_path / "out.jsonl"
        lines = self.lines(form)
        source.write_text("\n".join(lines[:7]) + "\n")
        toy_job([str(source)], str(out), max_new_tokens=2)
        source.write_text("\r\n".join(lines) + "\r\n")
        toy_job([str(source)], str(out), max_new_tokens=2, resume=True)
        assert len(texts(out)) == 12
        named = [record["custom_id"].startswith("name") for record in records(out)]
        assert [("input_digest" in record) for record in records(out)] == [not name for name in named]

    def test_a_failed_row_may_be_corrected_in_place(self, tmp_path: Path) -> None:
        source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        source.write_text('{"prompt": "a"}\n{\n{"prompt": "c"}\n')
        toy_job([str(source)], str(out), max_new_tokens=2)
        source.write_text('{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": "c"}\n')
        assert toy_job([str(source)], str(out), max_new_tokens=2, resume=True).rows == 0
        assert toy_job([str(source)], str(out), max_new_tokens=2, retry=True).failed == 0


class TestSidecar:
    @pytest.mark.parametrize("content", ["[]", "null", "3", "[" * 100_000, '{"a":' * 100_000, "{", "", "\0\xff"])
    def test_a_damaged_sidecar_is_rejected(self, tmp_path: Path, content: str) -> None:
        source, out = write_rows(tmp_path / "in.jsonl", 3), tmp_path / "out.jsonl"
        toy_job([source], str(out))
        before = out.read_bytes()
        sidecar_of(out).write_text(content)
        with pytest.raises(InputError, match="out.jsonl.job cannot be read") as caught:
            toy_job([source], str(out), resume=True)
        assert caught.value.exit_code == 2 and out.read_bytes() == before

    @pytest.mark.parametrize("row", [10**15, 2**61])
    def test_a_large_row_number_takes_no_memory(self, tmp_path: Path, row: int) -> None:
        source, out = write_rows(tmp_path / "in.jsonl", 3), tmp_path / "out.jsonl"
        toy_job([source], str(out))
        with out.open("a") as file:
            file.write(json.dumps({"row": row, "custom_id": "far", "error": None}) + "\n")
        with pytest.raises(InputError, match="1 rows that have a record are gone"):
            toy_job([source], str(out), resume=True, ordered=True)

    @pytest.mark.parametrize("line", ["[" * 100_000, f'{{"row": {2**70}}}', '{"row": -1}', '{"row": 1.5}', "null"])
    def test_a_line_that_is_not_a_record(self, tmp_path: Path, line: str) -> None:
        source, out = write_rows(tmp_path / "in.jsonl", 3), tmp_path / "out.jsonl"
        toy_job([source], str(out))
        out.write_text(f"{line}\n{out.read_text()}")
        with pytest.raises(InputError, match="out.jsonl:1 is not a record of this job"):
            toy_job([source], str(out), resume=True)


def test_numbers_far_apart() -> None:
    numbers, table = NumberSet(), NumberTable(-1)
    for number in (0, BLOCK - 1, BLOCK, 10**15):
        assert numbers.add(number) and not numbers.add(number) and number in numbers
        table[number] = number + 1
        assert table[number] == number + 1
    assert len(numbers) == 4 and 5 not in numbers and table[5] == table[7 * BLOCK] == -1
    assert table.numbers() == [0, BLOCK, 10**15 // BLOCK * BLOCK]
