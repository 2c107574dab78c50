"""Rows to evaluate on: a prompt, its references, and its slices.

Knows .jsonl files; knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inference.config.input_formats import suffixes_of
from inference.errors import InputError
from inference.inputs.files import ByteFile, check_file, is_blank
from inference.inputs.prompts import Prompt, RowError, parse_object, prompt_from_mapping
from inference.inputs.rows import decode_line

SUFFIXES = suffixes_of("jsonl")


@dataclass(frozen=True)
class Example:
    """A prompt and its correct answers.

    Args:
        references: one or more correct answers; perplexity is measured on the first.
        slices: names of the slices of the data that it belongs to, such as `sum` or `language=de`.
    """

    prompt: Prompt
    references: tuple[str, ...]
    slices: tuple[str, ...] = ()


def read_examples(values: Sequence[str], reference_key: str, slice_key: str) -> list[Example]:
    """Read all rows of files. A reference is a text or a list of texts; a slice may also be a mapping.

    Raises:
        InputError: a file does not exist or is not .jsonl, or a row cannot be used; the message names its line.
    """
    examples = [example for value in values for example in _file_examples(value, reference_key, slice_key)]
    if not examples:
        raise InputError(
            "there is no row to evaluate on", "give --predict_data a .jsonl file of prompts and references"
        )
    seen: dict[str, str] = {}
    for example in examples:
        where, name = example.prompt.where, example.prompt.custom_id
        if name in seen:
            raise InputError(f"{where}: custom_id '{name}' is also that of {seen[name]}", "give each row its own")
        seen[name] = where
    return examples


def have_references(values: Sequence[str], reference_key: str) -> bool:
    """Whether the first row of the first file has a reference."""
    if not values or not values[0].lower().endswith(SUFFIXES):
        return False
    check_file(values[0], SUFFIXES)
    for _, row, where in _objects(values[0]):
        return row.get(_key(row, reference_key, where)) is not None
    return False


def _file_examples(value: str, reference_key: str, slice_key: str) -> Iterator[Example]:
    if not value.lower().endswith(SUFFIXES):
        raise InputError(f"--predict_data: {value} is not a .jsonl file", "give prompts with references as JSON lines")
    check_file(value, SUFFIXES)
    for number, row, where in _objects(value):
        references = _texts(row.pop(_key(row, reference_key, where), None))
        if not references:
            raise RowError(f"{where}: no reference in this row", f"'{reference_key}' is a text or a list of texts")
        slices = _slices(row.pop(slice_key, None), where)
        yield Example(prompt_from_mapping(row, where, f"{value}:{number}"), references, slices)


def _objects(value: str) -> Iterator[tuple[int, dict[str, Any], str]]:
    for number, data in ByteFile(value).lines():
        if not is_blank(data):
            where = f"{value}:{number}"
            yield number, parse_object(decode_line(data, number, where), where), where


def _key(row: Mapping[str, Any], key: str, where: str) -> str:
    """The key of the references: `key`, or its plural if the row has that."""
    plural = f"{key}s"
    if key in row and plural in row:
        raise RowError(f"{where}: both '{key}' and '{plural}' in this row", "keep one")
    return plural if plural in row else key


def _texts(value: Any) -> tuple[str, ...]:
    texts = value if isinstance(value, list) else [value]
    return tuple(texts) if all(isinstance(text, str) for text in texts) else ()


def _slices(value: Any, where: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, Mapping):
        return tuple(f"{key}={name}" for key, name in value.items())
    names = value if isinstance(value, list) else [value]
    if not all(isinstance(name, (str, int)) for name in names):
        raise RowError(f"{where}: a slice is a text, a list of texts, or a mapping of them")
    return tuple(map(str, names))
