"""Rows to profile: each has a prompt and its label, or the reason why it has no prompt.

Knows files; knows nothing about tokens or statistics.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from inference.config.schema import InputSettings
from inference.errors import InputError
from inference.inputs import open_rows
from inference.inputs.files import ByteFile, check_file
from inference.inputs.prompts import Prompt, RowError, parse_object, prompt_from_mapping
from inference.inputs.rows import SUFFIXES, decode_line, is_blank

JSON_LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst")


@dataclass(frozen=True)
class DataRow:
    """A row to profile.

    Args:
        where: its file and line, for messages.
        prompt: None if the row is invalid.
        label: the value of the label column; None if there is none.
        error: why the row is invalid.
    """

    where: str
    prompt: Prompt | None
    label: str | None = None
    error: str | None = None


def read_data(values: Sequence[str], settings: InputSettings, label_key: str | None) -> Iterator[DataRow]:
    """Yield all rows of files and prompts, in order.

    Args:
        label_key: the key of the label in JSON rows; None for no labels.

    Raises:
        InputError: a file cannot be read, or labels are requested from a format that has none.
    """
    for value in values:
        if value.lower().endswith(JSON_LINES):
            yield from _json_rows(value, label_key)
        elif label_key is not None:
            raise InputError(f"validate.label_key needs .jsonl files, got {value}", "convert it, or leave out the key")
        else:
            yield from _plain_rows(value, settings)


def _json_rows(value: str, label_key: str | None) -> Iterator[DataRow]:
    check_file(value, SUFFIXES)
    for line, data in ByteFile(value).lines():
        if is_blank(data):
            continue
        where, label = f"{value}:{line}", None
        try:
            row = parse_object(decode_line(data, line, where), where)
            if label_key is not None and (found := row.pop(label_key, None)) is not None:
                label = str(found)
            yield DataRow(where, prompt_from_mapping(row, where, where), label)
        except RowError as error:
            yield DataRow(where, None, label, str(error))


def _plain_rows(value: str, settings: InputSettings) -> Iterator[DataRow]:
    for row in open_rows([value], settings.format, settings.prompt_column, settings.id_column):
        try:
            yield DataRow(row.where, row.parse())
        except RowError as error:
            yield DataRow(row.where, None, error=str(error))
