"""The forms of the files with records: JSON lines, text and Parquet.

Knows records; knows nothing about paths.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

JSON_LINES, TEXT, PARQUET = "jsonl", "text", "parquet"
SUFFIX = {JSON_LINES: ".jsonl", TEXT: ".txt", PARQUET: ".parquet"}


def encoded(records: Sequence[Mapping[str, Any]], form: str) -> bytes:
    """Return the contents of a file of records."""
    if form != PARQUET:
        line = text_line if form == TEXT else json_line
        return "".join(f"{line(record)}\n" for record in records).encode("utf-8", "replace")
    import pyarrow
    import pyarrow.parquet

    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([as_columns(record) for record in records], schema()), sink)
    return bytes(sink.getvalue())


def json_line(record: Any) -> str:
    line = json.dumps(record, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:  # JSON can escape a lone surrogate, UTF-8 cannot encode it
        line = json.dumps(record)
    return line


WHOLE_NUMBERS = ("row", "prompt_tokens", "completion_tokens", "cached_tokens", "seed", "truncated_tokens", "attempts")
NESTED = ("steps", "logprobs", "value")


def as_columns(record: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a record to a row of a table; nested values become JSON."""
    row = {name: record.get(name) for name in schema().names}
    return {**row, **{name: json_line(row[name]) for name in NESTED if row[name] is not None}}


def schema() -> Any:
    import pyarrow

    text, whole, real = pyarrow.string(), pyarrow.int64(), pyarrow.float64()
    kinds = {
        **dict.fromkeys(("custom_id", "file", "prompt", "text", "finish_reason", "model", "step", *NESTED), text),
        **dict.fromkeys(WHOLE_NUMBERS, whole),
        **dict.fromkeys(("ttft_seconds", "total_seconds"), real),
        "token_ids": pyarrow.list_(whole),
    }
    return pyarrow.schema(list(kinds.items()))


def text_line(record: Mapping[str, Any]) -> str:
    """Format a record as a line of text: name, tab, answer. Tabs and line breaks are escaped as in JSON."""
    return f"{escaped(record['custom_id'])}\t{escaped(record['text'])}"


def escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")


def unescaped(text: str) -> str:
    plain = {"n": "\n", "t": "\t", "r": "\r"}
    parts = iter(text)
    return "".join(plain.get(after := next(parts, ""), after) if char == "\\" else char for char in parts)
