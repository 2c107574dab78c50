"""Rows from everything that `--predict_data` names, one after the other, numbered throughout.

Knows which format a name stands for; a row is parsed only when somebody asks for its prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference.errors import InputError
from inference.inputs import files, tables
from inference.inputs.files import LONGEST_LINE, STDIN, ByteFile
from inference.inputs.prompts import Prompt, RowError, check_text, parse_row, prompt_of

FORMATS = ("txt", "jsonl", "csv", "parquet")
SUFFIXES = (*(f".{name}" for name in FORMATS), *(f".{n}{c}" for n in FORMATS[:3] for c in files.COMPRESSED))


@dataclass(frozen=True)
class Row:
    """A row that has not been parsed.

    Args:
        number: its place among all rows, from 0.
        name: of the file that it is in.
        line: on which it begins, from 1; None for an argument.
        parse: makes its prompt; raises RowError.
    """

    number: int
    name: str
    line: int | None
    parse: Callable[[], Prompt]

    @property
    def where(self) -> str:
        """What to name in errors."""
        return self.name if self.line is None else f"{self.name}:{self.line}"


class RowStream:
    """All rows of an input; to be iterated over once.

    Attributes:
        count: rows so far.
        blank_lines: lines passed over so far.
        texts_only: no row has a name of its own.
    """

    def __init__(self, values: Sequence[str], prompt_format: str | None, prompt_column: str, id_column: str):
        self._values = [(value, _format_of(value, prompt_format)) for value in values]
        self._prompt_column, self._id_column = prompt_column, id_column
        self._files: dict[int, ByteFile] = {}
        self._empty_files: list[str] = []
        self.count = 0
        self.blank_lines = 0
        self.texts_only = all(form in (None, "txt") for _, form in self._values)
        self.known_count: int | None = sum(form is None for _, form in self._values)
        for index, (value, form) in enumerate(self._values):
            if form is not None:
                self._files[index] = self._checked(value, form)

    def _checked(self, value: str, form: str) -> ByteFile:
        if value != STDIN:
            files.check_file(value, SUFFIXES)
        file = ByteFile(value)
        header = None
        if form == "parquet":
            header = tables.parquet_header(file)
            if self.known_count is not None:
                self.known_count += tables.parquet_count(file)
        else:
            self.known_count = None
            # A pipe can be read only once.
            if form == "csv" and file.size is not None:
                header = tables.csv_header(ByteFile(value))
        if header is not None:
            tables.column_of(header, self._prompt_column, file.name)
        return file

    @property
    def arguments(self) -> Iterator[Prompt]:
        """The prompts that are arguments themselves."""
        return (
            Prompt(str(index), f"prompt {index + 1}", text=value)
            for index, (value, form) in enumerate(self._values)
            if form is None
        )

    @property
    def inputs(self) -> list[tuple[str, str | None]]:
        """Every value, and the format of those that are files."""
        return list(self._values)

    @property
    def empty_files(self) -> list[str]:
        """Files so far that hold no prompt."""
        return self._empty_files

    def expected(self) -> float | None:
        """How many rows there will be: what is known, or else guessed from the share of the bytes that was read."""
        if self.known_count is not None:
            return self.known_count
        sizes = [file.size for file in self._files.values()]
        total = sum(size or 0 for size in sizes)
        read = sum(min(file.consumed, file.size or 0) for file in self._files.values())
        return self.count * total / read if None not in sizes and read else None

    def __iter__(self) -> Iterator[Row]:
        for index, (value, form) in enumerate(self._values):
            before = self.count
            if form is None:
                yield self._row(f"prompt {self.count + 1}", None, self._argument(value))
            else:
                yield from self._file_rows(self._files[index], form)
                if self.count == before:
                    self._empty_files.append(self._files[index].name)

    def _row(self, name: str, line: int | None, parse: Callable[[str, str], Prompt]) -> Row:
        number = self.count
        self.count += 1
        where = name if line is None else f"{name}:{line}"
        return Row(number, name, line, lambda: parse(where, str(number)))

    @staticmethod
    def _argument(value: str) -> Callable[[str, str], Prompt]:
        return lambda where, name: Prompt(name, where, text=value)

    def _file_rows(self, file: ByteFile, form: str) -> Iterator[Row]:
        if form in ("csv", "parquet"):
            read = tables.csv_rows if form == "csv" else tables.parquet_rows
            for line, cell, name in read(file, self._prompt_column, self._id_column):
                yield self._row(file.name, line, table_parser(cell, name))
            return
        for line, data in file.lines():
            if not is_blank(data):
                yield self._row(file.name, line, _line_parser(data, line, form))
            else:
                self.blank_lines += 1


def open_rows(
    values: Sequence[str], prompt_format: str | None = None, prompt_column: str = "prompt", id_column: str = "custom_id"
) -> RowStream:
    """The rows of every value: `-` is standard input, a name with one of the suffixes a file, all else a prompt.

    Args:
        prompt_format: of files and standard input; told by the suffix if None, and lines of text from standard input.
        prompt_column: of tables, that of the prompts.
        id_column: of tables, that of the rows' names, where there is such a column.

    Raises:
        InputError: no value, an empty prompt, a file that is missing or has no such column.
    """
    stream = RowStream(values, prompt_format, prompt_column, id_column)
    if not values:
        raise no_prompt()
    return stream


def no_prompt() -> InputError:
    """There is nothing to do."""
    return InputError(
        "there is no prompt", f"give --predict_data a text, a file ({', '.join(SUFFIXES)}), or - for stdin"
    )


def _format_of(value: str, given: str | None) -> str | None:
    """The format of a file; None for a prompt."""
    if value == STDIN:
        return given or "txt"
    lower = value.lower()
    if lower.endswith(SUFFIXES):
        bare = lower.removesuffix(".gz").removesuffix(".zst")
        return given or bare.rpartition(".")[2]
    path = Path(value)
    # A file or directory that exists was hardly meant as a prompt, if it looks like a path.
    if (path.suffix or "/" in value) and files.exists(path):
        if given and not path.is_dir():
            return given
        kind = "a directory" if path.is_dir() else f"a file, but none of {', '.join(SUFFIXES)}"
        raise InputError(
            f"--predict_data: {value} is {kind}", "say what it is with --input_format, or give it through -"
        )
    check_text(value, "--predict_data")
    return None


def _line_parser(data: bytes, line: int, form: str) -> Callable[[str, str], Prompt]:
    def parse(where: str, name: str) -> Prompt:
        text = decode_line(data, line, where)
        return parse_row(text, where, name) if form == "jsonl" else prompt_of(text, where, name)

    return parse


def is_blank(data: bytes) -> bool:
    """Whether a line has nothing but spaces, also of other scripts' kinds."""
    if not data.strip():
        return True
    return len(data) < 100 and not data.isascii() and not data.decode("utf-8-sig", "replace").strip()


def decode_line(data: bytes, line: int, where: str) -> str:
    """The text of a line, without its end.

    Raises:
        RowError: it is too long, or not UTF-8; the message begins with `where`.
    """
    if len(data) > LONGEST_LINE:
        raise RowError(f"{where}: this line is longer than {LONGEST_LINE >> 20} MiB", "a row is a line")
    data = data.removesuffix(b"\n").removesuffix(b"\r")
    try:
        return data.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise RowError(f"{where}: byte 0x{data[error.start]:02X} is not UTF-8", "save it as UTF-8") from error


def table_parser(cell: Any, name: Any) -> Callable[[str, str], Prompt]:
    """Makes the prompt of a row of a table out of its two cells."""

    def parse(where: str, number: str) -> Prompt:
        custom_id = number if name in (None, "") else str(name)
        if isinstance(cell, InputError):
            raise RowError(f"{where}: {cell.what}", cell.hint, custom_id)
        return prompt_of(cell, where, custom_id)

    return parse
