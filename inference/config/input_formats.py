"""The formats of prompt files: the single table used by flags, the config schema, messages and readers.

Knows names and suffixes; `inference.inputs` knows how to read each format.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

# Longest line of a prompt file in bytes, so that a file without newlines cannot fill memory.
MAX_LINE_BYTES = 64 << 20
FormatName = Literal["txt", "jsonl", "csv", "parquet"]
FORMAT_NAMES: tuple[FormatName, ...] = get_args(FormatName)
# Suffixes of compressed files. The compression format is detected from a file's first bytes, not from its suffix.
COMPRESSED_SUFFIXES = (".gz", ".zst")


class InputFormat(NamedTuple):
    """Properties of a format.

    Args:
        row: what a row is, for documentation.
        is_table: whether it has named columns.
        is_compressible: whether it may be compressed as a whole and read from standard input.
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
    """Returns the file suffixes of these formats, compressed ones last."""
    compressed = [
        f".{name}{suffix}" for name in names if FORMATS[name].is_compressible for suffix in COMPRESSED_SUFFIXES
    ]
    return (*(f".{name}" for name in names), *compressed)


SUFFIXES = suffixes_of(*FORMATS)


def format_of_name(name: str) -> str | None:
    """Returns the format that a file's suffix implies; None if it implies none."""
    lower = name.lower()
    if not lower.endswith(SUFFIXES):
        return None
    for suffix in COMPRESSED_SUFFIXES:
        lower = lower.removesuffix(suffix)
    return lower.rpartition(".")[2]
