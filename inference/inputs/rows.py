"""Rows from everything that `--predict_data` names, one after the other, with consecutive numbers.

Knows which format a file name stands for; a row is parsed only when its prompt is requested.
"""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from inference.config.input_formats import COMPRESSED_SUFFIXES, FORMATS, MAX_LINE_BYTES, SUFFIXES, format_of_name
from inference.errors import InputError
from inference.inputs import files, tables
from inference.inputs.files import STDIN, ByteFile, is_blank
from inference.inputs.prompts import Prompt, RowError, check_text, parse_row, prompt_of

# In bytes. If the files together are no larger, their rows are counted before the first is answered.
COUNTED = 1 << 20
# Scheme, and path without its query (RFC 3986).
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^\s?#]+)\S*\Z")
_WEB = ("http", "https", "ftp")


@dataclass(frozen=True)
class Row:
    """A row that has not been parsed.

    Args:
        number: its index among all rows, from 0.
        name: name of its file.
        line: line on which it begins, from 1; None for an argument.
        parse: makes its prompt; raises RowError.
        content: the row as stored in its file; None for an argument.
    """

    number: int
    name: str
    line: int | None
    parse: Callable[[], Prompt]
    content: bytes | str | None = None

    @property
    def where(self) -> str:
        """The location to name in errors."""
        return self.name if self.line is None else f"{self.name}:{self.line}"

    @property
    def digest(self) -> str | None:
        """A digest that lets a later run detect a changed row; None for an argument."""
        if self.content is None:
            return None
        data = self.content if isinstance(self.content, bytes) else self.content.encode("utf-8", "replace")
        return blake2b(data.strip(), digest_size=8).hexdigest()


class RowStream:
    """All rows of an input; can be iterated over once.

    Attributes:
        count: rows so far.
        blank_lines: blank lines so far.
        texts_only: whether no row can have a custom_id.
        known_count: total number of rows, if known.
    """

    def __init__(
        self,
        values: Sequence[str],
        prompt_format: str | None,
        prompt_column: str,
        id_column: str,
        max_line_bytes: int = MAX_LINE_BYTES,
    ):
        self._values = [(value, _format_of(value, prompt_format)) for value in _expanded(values)]
        self._prompt_column, self._id_column, self._max_line_bytes = prompt_column, id_column, max_line_bytes
        self._files: dict[int, ByteFile] = {}
        self._empty_files: list[str] = []
        self.count = 0
        self.blank_lines = 0
        self.texts_only = all(form in (None, "txt") for _, form in self._values)
        for index, (value, form) in enumerate(self._values):
            if form is not None:
                self._files[index] = self._checked(value, form)
        self.known_count = self._known_count()

    def _file(self, value: str) -> ByteFile:
        return ByteFile(value, max_line_bytes=self._max_line_bytes)

    def _checked(self, value: str, form: str) -> ByteFile:
        if value != STDIN:
            files.check_file(value, SUFFIXES)
        file = self._file(value)
        # A pipe can be read only once.
        if FORMATS[form].is_table and (file.size is not None or form == "parquet"):
            tables.column_of(tables.HEADERS[form](self._file(value)), self._prompt_column, file.name)
        return file

    def _known_count(self) -> int | None:
        """The total number of rows; None if the files are too large to count or cannot be read."""
        sizes = [file.size for index, file in self._files.items() if self._values[index][1] != "parquet"]
        if None in sizes or sum(size or 0 for size in sizes) > COUNTED:
            return None
        try:
            return sum(1 if form is None else self._rows_of(value, form) for value, form in self._values)
        except InputError:  # reported when its turn comes
            return None

    def _rows_of(self, value: str, form: str) -> int:
        if form == "parquet":
            return tables.parquet_count(self._file(value))
        if form == "csv":
            return sum(1 for _ in tables.csv_rows(self._file(value), self._prompt_column, self._id_column))
        file, size = self._file(value), 0
        count = 0
        for _, line in file.lines():
            count += not is_blank(line)
            size += len(line)
            if size > 16 * COUNTED:
                raise InputError(f"{value} is too large to be counted")
        return count

    @property
    def arguments(self) -> Iterator[Prompt]:
        """The prompts given as arguments."""
        return (
            Prompt(str(index), f"prompt {index + 1}", text=value)
            for index, (value, form) in enumerate(self._values)
            if form is None
        )

    @property
    def inputs(self) -> list[tuple[str, str | None]]:
        """Every value, with its format if it is a file."""
        return list(self._values)

    @property
    def empty_files(self) -> list[str]:
        """Files read so far that hold no prompt."""
        return self._empty_files

    def expected(self) -> float | None:
        """The expected number of rows: known, or else estimated from the share of the bytes parsed so far."""
        if self.known_count is not None:
            return self.known_count
        sizes = [file.size for file in self._files.values()]
        total = sum(size or 0 for size in sizes)
        parsed = sum(min(file.consumed, file.size or 0) for file in self._files.values())
        return self.count * total / parsed if None not in sizes and parsed else None

    def __iter__(self) -> Iterator[Row]:
        for index, (value, form) in enumerate(self._values):
            before = self.count
            if form is None:
                yield self._row(f"prompt {self.count + 1}", None, self._argument(value))
            else:
                yield from self._file_rows(self._files[index], form)
                if self.count == before:
                    self._empty_files.append(self._files[index].name)

    def _row(
        self, name: str, line: int | None, parse: Callable[[str, str], Prompt], content: bytes | str | None = None
    ) -> Row:
        number = self.count
        self.count += 1
        where = name if line is None else f"{name}:{line}"
        return Row(number, name, line, lambda: parse(where, str(number)), content)

    @staticmethod
    def _argument(value: str) -> Callable[[str, str], Prompt]:
        return lambda where, name: Prompt(name, where, text=value)

    def _file_rows(self, file: ByteFile, form: str) -> Iterator[Row]:
        if FORMATS[form].is_table:
            for line, cell, name in tables.READERS[form](file, self._prompt_column, self._id_column):
                yield self._row(file.name, line, table_parser(cell, name), repr((cell, name)))
            return
        for line, data in file.lines():
            if not is_blank(data):
                yield self._row(file.name, line, _line_parser(data, line, form, self._max_line_bytes), data)
            else:
                self.blank_lines += 1


def open_rows(
    values: Sequence[str],
    prompt_format: str | None = None,
    prompt_column: str = "prompt",
    id_column: str = "custom_id",
    max_line_bytes: int = MAX_LINE_BYTES,
) -> RowStream:
    """Opens the rows of every value. `-` is standard input, a name with one of the suffixes is a file, a pattern such
    as `in/*.txt` is all files that it matches, and anything else is a prompt.

    Args:
        prompt_format: format of files and standard input; if None, the suffix decides, and standard input is lines of
            text.
        prompt_column: column of the prompts in tables.
        id_column: column of the rows' names, in tables that have it.
        max_line_bytes: a longer line is a bad row.

    Raises:
        InputError: there is no value, a prompt is empty, a file does not exist, or a table lacks the column.
    """
    stream = RowStream(values, prompt_format, prompt_column, id_column, max_line_bytes)
    if not values:
        raise no_prompt()
    return stream


def no_prompt() -> InputError:
    """The error for an input without prompts."""
    known = ", ".join(f".{name}" for name in FORMATS)
    compressed = " or ".join(COMPRESSED_SUFFIXES)
    return InputError(
        "there is no prompt",
        f"give --predict_data a text, a file ({known}, also with {compressed}), or - for stdin; or --run_mode chat",
    )


def _expanded(values: Sequence[str]) -> Iterator[str]:
    """Yields the values, with each pattern replaced by the files that it matches, sorted by name.

    Raises:
        InputError: a pattern matches nothing.
    """
    for value in values:
        if not _is_pattern(value):
            yield value
            continue
        matches = glob.glob(value, recursive=True)  # noqa: PTH207  # keep paths in the form given
        found = sorted(path for path in matches if not Path(path).is_dir())
        if not found:
            raise InputError(f"--predict_data: {value} matches no file", "look at the directory and the suffix")
        yield from found


def _is_pattern(value: str) -> bool:
    """Whether a value is a file pattern: it has a wildcard, and either a known suffix or an existing directory."""
    if not glob.has_magic(value) or "\n" in value or files.exists(Path(value)):
        return False
    parts = Path(value).parts
    fixed = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    is_in_directory = fixed > 0 and not any(char.isspace() for char in value) and files.exists(Path(*parts[:fixed]))
    return is_in_directory or value.lower().endswith(SUFFIXES)


def _format_of(value: str, given: str | None) -> str | None:
    """The format of a file; None for a prompt."""
    if value == STDIN:
        return given or "txt"
    _check_is_no_url(value)
    told = format_of_name(value)
    if told is not None:
        return given or told
    # Before anything asks for a path: that of an empty text is the working directory.
    check_text(value, "--predict_data")
    path = Path(value)
    # A value that looks like a path and exists is hardly meant as a prompt.
    if files.exists(path) and (path.suffix or "/" in value or path.is_dir()):
        if given and not path.is_dir():
            return given
        if path.is_dir():
            raise InputError(f"--predict_data: {value} is a directory", _files_in(path, value))
        raise InputError(
            f"--predict_data: {value} is a file, but none of {', '.join(SUFFIXES)}",
            "say what it is with --input_format, or give it through -",
        )
    return None


def _check_is_no_url(value: str) -> None:
    """Rejects the URL of a file of prompts; any other URL is a prompt.

    Raises:
        InputError: the value is such a URL.
    """
    match = _URL.match(value)
    if not match or (match[1].lower() in _WEB and format_of_name(match[2]) is None):
        return
    if match[1].lower() in _WEB:
        hint = f"download it first, such as with curl -LO {value}"
    elif match[1].lower() == "file":
        hint = "give its path"
    else:
        hint = "copy it to this machine, or use --run_mode pipeline, which reads Beam's file systems"
    raise InputError(f"--predict_data: {value} is a URL, and prompts come from files of this machine", hint)


def _files_in(directory: Path, value: str) -> str:
    """Returns a hint that names a directory's files of prompts by the pattern that matches most of them."""
    formats = Counter(form for file in directory.iterdir() if (form := format_of_name(file.name)))
    if not formats:
        known = ", ".join(f".{name}" for name in FORMATS)
        return f"name a file of prompts ({known}); there is none in it"
    return f"name its files: '{value.rstrip('/')}/*.{formats.most_common(1)[0][0]}'"


def _line_parser(data: bytes, line: int, form: str, max_line_bytes: int) -> Callable[[str, str], Prompt]:
    def parse(where: str, name: str) -> Prompt:
        text = decode_line(data, line, where, max_line_bytes)
        return parse_row(text, where, name) if form == "jsonl" else prompt_of(text, where, name)

    return parse


def decode_line(data: bytes, line: int, where: str, max_line_bytes: int = MAX_LINE_BYTES) -> str:
    """Decodes a line, without its line ending.

    Raises:
        RowError: it is too long, or not UTF-8; the message begins with `where`.
    """
    if len(data) > max_line_bytes:
        raise RowError(f"{where}: this line is longer than {max_line_bytes:,} bytes", "raise input.max_line_bytes")
    data = data.removesuffix(b"\n").removesuffix(b"\r")
    try:
        return data.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise RowError(f"{where}: byte 0x{data[error.start]:02X} is not UTF-8", "save it as UTF-8") from error


def table_parser(cell: Any, name: Any) -> Callable[[str, str], Prompt]:
    """Returns a function that makes the prompt of a table row from its two cells."""

    def parse(where: str, number: str) -> Prompt:
        custom_id = number if name in (None, "") else str(name)
        if isinstance(cell, InputError):
            raise RowError(f"{where}: {cell.what}", cell.hint, custom_id)
        return prompt_of(cell, where, custom_id)

    return parse
