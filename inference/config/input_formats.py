"""The formats of prompt files: the one table that flags, the config's schema, messages and readers use.

Knows names and suffixes; `inference.inputs` knows how each is read.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

# The longest line of a file of prompts, bytes: a file without newlines must not fill the memory.
MAX_LINE_BYTES = 64 << 20
FormatName = Literal["txt", "jsonl", "csv", "parquet"]
FORMAT_NAMES: tuple[FormatName, ...] = get_args(FormatName)
# Suffixes of compressed files. What a file is compressed with is told by its first bytes, not by these.
COMPRESSED_SUFFIXES = (".gz", ".zst")


class InputFormat(NamedTuple):
    """How a format behaves.

    Args:
        row: what a row is, for documentation.
        is_table: it has named columns.
        is_compressible: it may be compressed as a whole and come through standard input.
    """

    row: str
    is_table: bool = False
    is_compressible: bool = True


FORMATS: dict[str, InputFormat] = {
    "txt": InputFormat("a line is a prompt"),
    "jsonl": InputFormat("a line is a JSON object with `prompt` or `messages`, or OpenAI's `body`"),
    "csv": InputFormat("a record with a prompt in one column", is_table=True),
    "parquet": InputFormat("a row with a prompt in one column", is_table=True, is_compressible=False),
}


def suffixes_of(*names: str) -> tuple[str, ...]:
    """The suffixes of files of these formats, compressed ones last."""
    compressed = [
        f".{name}{suffix}" for name in names if FORMATS[name].is_compressible for suffix in COMPRESSED_SUFFIXES
    ]
    return (*(f".{name}" for name in names), *compressed)


SUFFIXES = suffixes_of(*FORMATS)


def format_of_name(name: str) -> str | None:
    """The format that a file's name tells; None if it tells none."""
    lower = name.lower()
    if not lower.endswith(SUFFIXES):
        return None
    for suffix in COMPRESSED_SUFFIXES:
        lower = lower.removesuffix(suffix)
    return lower.rpartition(".")[2]
