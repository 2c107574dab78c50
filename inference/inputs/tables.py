"""Tables of prompts: .csv and .parquet files in which one column is the prompt and another may name the row.

Other columns are ignored. Knows columns; `prompts` decides what a prompt may be.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from inference.errors import InputError, did_you_mean
from inference.inputs.files import HOPELESS, ByteFile

# Rows of a .parquet file held in memory at once.
BATCH = 256
Cell = Any
_QUOTES = 'a text with a comma, a newline or a quote belongs in quotes, and a quote in it is written ""'
_NOTHING: tuple[int, list[str]] = (0, [])


def csv_header(file: ByteFile) -> list[str]:
    """The column names of a .csv file; not for standard input, which can be read only once."""
    return next(_records(file), _NOTHING)[1]


def csv_rows(file: ByteFile, prompt_column: str, id_column: str) -> Iterator[tuple[int, Cell, Cell]]:
    """Yields the line, prompt and name (or None) of each row.

    A row that cannot be read has an `InputError` instead of its prompt.

    Raises:
        InputError: there is no such column.
    """
    records = _records(file)
    header = next(records, _NOTHING)[1]
    prompt = column_of(header, prompt_column, file.name)
    name = header.index(id_column) if id_column in header else None
    for line, record in records:
        if isinstance(record, InputError):
            yield line, record, None
        elif record:
            missing = len(record) <= max(prompt, name or 0)
            width = f"this row has {len(record)} of {len(header)} columns"
            cell = (
                InputError(width, "a text with a newline or a comma belongs in quotes") if missing else record[prompt]
            )
            yield line, cell, record[name] if name is not None and name < len(record) else None


def parquet_header(file: ByteFile) -> list[str]:
    """The column names of a .parquet file."""
    return list(_parquet(file).schema_arrow.names)


def parquet_count(file: ByteFile) -> int:
    """The number of rows in a .parquet file."""
    return int(_parquet(file).metadata.num_rows)


def parquet_rows(file: ByteFile, prompt_column: str, id_column: str) -> Iterator[tuple[int, Cell, Cell]]:
    """Yields the number (from 1), prompt and name (or None) of each row."""
    table = _parquet(file)
    header = list(table.schema_arrow.names)
    column_of(header, prompt_column, file.name)
    columns = [prompt_column, *([id_column] if id_column in header else [])]
    # pyarrow 19 fails on a file without rows.
    if not table.metadata.num_rows:
        return
    number = 0
    try:
        for batch in table.iter_batches(batch_size=BATCH, columns=columns):
            prompts = batch.column(prompt_column).to_pylist()
            names = batch.column(id_column).to_pylist() if len(columns) == 2 else [None] * len(prompts)
            for prompt, name in zip(prompts, names, strict=True):
                number += 1
                yield number, prompt, name
    except (OSError, ValueError) as error:
        raise _damaged(file, error) from error


def column_of(header: Sequence[str], wanted: str, name: str) -> int:
    """The index of a column.

    Raises:
        InputError: no column, or more than one, has this name; the hint lists the columns.
    """
    if header.count(wanted) == 1:
        return header.index(wanted)
    if wanted in header:
        raise InputError(f"{name} has {header.count(wanted)} columns '{wanted}'", "give each a name of its own")
    if len(header) == 1 and any(separator in header[0] for separator in ";\t|"):
        hint = f"its first line is {header[0]!r}: columns must be separated by commas"
    else:
        columns = f"name one with --prompt_column: {', '.join(header) or 'none'}"
        hint = did_you_mean(wanted, header) or columns
    raise InputError(f"{name} has no column '{wanted}'", hint)


def _records(file: ByteFile) -> Iterator[tuple[int, Any]]:
    """Yields the first line and the cells of each .csv record; an `InputError` for one that cannot be read."""
    csv.field_size_limit(file.max_line_bytes)
    lines = _Lines(file)
    # Strict: otherwise an unclosed quote silently turns all later rows into one prompt.
    reader = csv.reader(lines, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, InputError(f"not CSV ({error})", _QUOTES)
            continue
        finally:
            lines.record_bytes = 0
        if lines.too_long >= line:
            limit = f"this line is longer than {file.max_line_bytes:,} bytes"
            yield line, InputError(limit, "raise input.max_line_bytes")
            continue
        odd = next((char for cell in record for char in cell if "\udc80" <= char <= "\udcff"), None)
        if odd is not None and line > 1:
            yield line, InputError(f"byte 0x{ord(odd) - 0xDC00:02X} is not UTF-8", "save it as UTF-8")
        else:
            yield line, record


class _Lines:
    """The lines of a .csv file as text, for the reader of records.

    Attributes:
        record_bytes: length of the lines since the last record, bytes.
        too_long: number of the last truncated line.
    """

    def __init__(self, file: ByteFile):
        self._file, self._lines = file, file.lines()
        self.record_bytes = self.too_long = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        number, line = next(self._lines)
        self.record_bytes += len(line)
        if self._file.is_too_long(line):
            self.too_long = number
        if self.record_bytes > HOPELESS * self._file.max_line_bytes:
            raise InputError(f"{self._file.name}:{number}: a record of this file has no end", _QUOTES)
        # A byte that is not UTF-8 becomes a lone surrogate, which no valid text contains.
        return line.decode("utf-8-sig" if number == 1 else "utf-8", "surrogateescape")


def _parquet(file: ByteFile) -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise InputError(f"{file.name}: .parquet needs the package pyarrow", "pip install 'pyarrow<24'") from None
    if file.path is None:
        raise InputError("parquet cannot be read from standard input", "name a file")
    try:
        return pyarrow.parquet.ParquetFile(file.seekable())
    except (OSError, ValueError) as error:
        raise _damaged(file, error) from error


def _damaged(file: ByteFile, error: Exception) -> InputError:
    return InputError(f"{file.name} is not a .parquet file, or is damaged: {error}")


Reader = Callable[[ByteFile, str, str], Iterator[tuple[int, Cell, Cell]]]
# How to read each table format.
READERS: dict[str, Reader] = {"csv": csv_rows, "parquet": parquet_rows}
HEADERS: dict[str, Callable[[ByteFile], list[str]]] = {"csv": csv_header, "parquet": parquet_header}
