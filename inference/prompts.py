"""Prompts as the user gives them: texts, token ids, chats; from arguments, standard input and files.

Knows file formats and what a row may say; knows nothing about tokenizers or models. Every mistake names its file and
line, and is found before any model is loaded.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inference.config.generation import GenerationConfig
from inference.errors import ConfigError, InputError, did_you_mean, nearest

FILE_SUFFIXES = (".txt", ".jsonl")
STDIN = "-"
ROW_KEYS = ("custom_id", "prompt", "messages")


@dataclass(frozen=True)
class Prompt:
    """One row of input: exactly one of `text`, `token_ids` and `messages` is given.

    Args:
        custom_id: the row's name in the output.
        where: what to name in errors, such as `prompts.jsonl:3`.
        settings: generation settings of this row alone.
    """

    custom_id: str
    where: str
    text: str | None = None
    token_ids: tuple[int, ...] | None = None
    messages: tuple[Mapping[str, Any], ...] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class PromptBatch:
    """All rows of an input, and how many blank lines were passed over."""

    prompts: list[Prompt] = field(default_factory=list)
    blank_lines: int = 0


def read_prompts(values: Sequence[str]) -> PromptBatch:
    """Reads each value: `-` is standard input, a name that ends in .txt or .jsonl is a file, all else is a prompt.

    Raises:
        InputError: no prompt, an empty one, a file that is missing or damaged, or a row that makes no sense.
    """
    batch = PromptBatch()
    for value in values:
        if value == STDIN:
            _read_lines(_decode(_standard_input(), "standard input"), "standard input", batch)
        elif value.lower().endswith(FILE_SUFFIXES):
            _read_file(Path(value), batch)
        else:
            _refuse_other_file(value)
            number = len(batch.prompts)
            batch.prompts.append(Prompt(str(number), f"prompt {number + 1}", text=check_text(value, "--predict_data")))
    if not batch.prompts:
        raise InputError("there is no prompt", "give --predict_data a text, a .txt or .jsonl file, or - for stdin")
    _check_unique(batch.prompts)
    return batch


def _standard_input() -> bytes:
    if sys.stdin is None:
        raise InputError("standard input is closed", "give it prompts, a line each, or name a file")
    return sys.stdin.buffer.read()


def _refuse_other_file(value: str) -> None:
    """A file or directory that exists was hardly meant as a prompt, if it looks like a path."""
    path = Path(value)
    if (path.suffix or "/" in value) and _exists(path):
        kind = "a directory" if path.is_dir() else "a file, but neither .txt nor .jsonl"
        raise InputError(f"--predict_data: {value} is {kind}", "give a file with one of these suffixes, or - for stdin")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long for a path, or with a null character
        return False


def _read_file(path: Path, batch: PromptBatch) -> None:
    if not (_exists(path) and path.is_file()):
        raise InputError(f"the prompt file {path} does not exist", _file_hint(path))
    try:
        text = _decode(path.read_bytes(), str(path))
    except OSError as error:
        raise InputError(f"the prompt file {path} cannot be read: {error.strerror}") from error
    before = len(batch.prompts)
    if path.suffix.lower() == ".jsonl":
        for where, line in _lines(text, str(path), batch):
            batch.prompts.append(parse_row(line, where, str(len(batch.prompts))))
    else:
        _read_lines(text, str(path), batch)
    if len(batch.prompts) == before:
        raise InputError(f"the prompt file {path} holds no prompt")


def _file_hint(path: Path) -> str:
    close = nearest(path.name, [file.name for file in path.parent.iterdir()]) if path.parent.is_dir() else None
    return f"did you mean '{path.parent / close}'?" if close else "a text that ends so can be given through -"


def _read_lines(text: str, name: str, batch: PromptBatch) -> None:
    for where, line in _lines(text, name, batch):
        batch.prompts.append(Prompt(str(len(batch.prompts)), where, text=line))


def _lines(text: str, name: str, batch: PromptBatch) -> Iterator[tuple[str, str]]:
    """Lines that are not blank, with their numbers. Only newlines end a line: U+2028 is part of a text."""
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, 1):
        line = line.removesuffix("\r")
        if line.strip():
            yield f"{name}:{number}", line
        else:
            batch.blank_lines += 1


def _decode(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{name}:{line}: byte 0x{data[error.start]:02X} is not UTF-8", "save it as UTF-8") from error


def parse_row(line: str, where: str, default_id: str) -> Prompt:
    """One line of a .jsonl file: an object with `prompt` (text or token ids) or `messages`, and settings.

    Raises:
        InputError: no JSON, no prompt, or an unknown or impossible setting; the message begins with `where`.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({error})", 'a row looks like {"prompt": "..."}') from error
    if not isinstance(row, dict):
        raise InputError(f"{where}: a row must be an object, got {type(row).__name__}")
    settings = _row_settings({key: value for key, value in row.items() if key not in ROW_KEYS}, where)
    given = [key for key in ("prompt", "messages") if row.get(key) is not None]
    if len(given) != 1:
        accepted = "give either 'prompt' (text or token ids) or 'messages'"
        raise InputError(f"{where}: {'both prompt and messages' if given else 'no prompt'} in this row", accepted)
    custom_id = row.get("custom_id", default_id)
    if not isinstance(custom_id, (str, int)) or isinstance(custom_id, bool):
        raise InputError(f"{where}: custom_id must be text or a number")
    text, ids, messages = _content(row, where)
    return Prompt(str(custom_id), where, text, ids, messages, settings)


def _content(row: Mapping[str, Any], where: str) -> tuple[str | None, tuple[int, ...] | None, tuple | None]:
    prompt, messages = row.get("prompt"), row.get("messages")
    if messages is not None:
        if not (isinstance(messages, list) and messages and all(isinstance(m, dict) and "role" in m for m in messages)):
            raise InputError(f"{where}: messages must be a list of objects with 'role' and 'content'")
        return None, None, tuple(messages)
    if isinstance(prompt, str):
        return check_text(prompt, where), None, None
    if not isinstance(prompt, list) or not all(type(token) is int and token >= 0 for token in prompt):
        raise InputError(f"{where}: prompt must be text or a list of token ids")
    if not prompt:
        raise InputError(f"{where}: the prompt is empty", "give at least one token")
    return None, tuple(prompt), None


def _row_settings(settings: dict[str, Any], where: str) -> dict[str, Any]:
    try:
        GenerationConfig().updated(**settings)
    except (ConfigError, TypeError) as error:
        unknown = [key for key in settings if key not in GenerationConfig.model_fields]
        hint = did_you_mean(unknown[0], [*GenerationConfig.model_fields, *ROW_KEYS]) if unknown else None
        raise InputError(f"{where}: {error.what if isinstance(error, ConfigError) else error}", hint) from error
    return settings


def check_text(text: str, where: str) -> str:
    """The text, if there is anything in it.

    Raises:
        InputError: it is empty or blank; the message begins with `where`.
    """
    if isinstance(text, str) and not text.strip():
        raise InputError(f"{where}: the prompt is empty", "give at least one character")
    return text


def _check_unique(prompts: Iterable[Prompt]) -> None:
    seen: dict[str, str] = {}
    for prompt in prompts:
        if prompt.custom_id in seen:
            raise InputError(
                f"{prompt.where}: custom_id '{prompt.custom_id}' is that of {seen[prompt.custom_id]} too",
                "give each row its own",
            )
        seen[prompt.custom_id] = prompt.where
