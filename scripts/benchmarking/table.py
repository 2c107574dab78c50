"""Rows of figures as markdown, CSV and JSON lines. Knows names of figures; knows nothing about measuring them."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

Row = dict[str, Any]
TEXTS = {"model": "model", "program": "program", "weights": "weights"}
COLUMNS = {
    "threads": "threads",
    "load_s": "load s",
    "converted_load_s": "load converted s",
    "compile_s": "compile s",
    "first_token_s": "first token s",
    "converted_first_token_s": "first token converted s",
    "prefill_tok_s": "prefill tok/s",
    "ttft_ms": "TTFT ms",
    "decode_1_tok_s": "decode tok/s",
    "spread": "spread",
    "bandwidth_gb_s": "read GB/s",
    "roof": "of bandwidth",
    "gflops": "GFLOP/s",
    "decode_4_tok_s": "4 rows tok/s",
    "decode_16_tok_s": "16 rows tok/s",
    "weights_mb": "weights MB",
    "kv_mb": "KV MB",
    "peak_mb": "peak MB",
    "over_mb": "peak - weights - KV MB",
    "agree": "agree",
}
STARTUP = {"startup": "start-up of the demo model", "seconds": "s"}
# Too long for a table; included in JSON lines.
ANSWERS = "out_ids"


def render(rows: list[Row], startup: list[Row], form: str) -> str:
    """Render the rows as markdown, csv or jsonl."""
    if form == "jsonl":
        return "\n".join(json.dumps(row) for row in [*rows, *startup])
    if form == "csv":
        return _csv([*rows, *startup])
    # Omit empty columns.
    columns = {name: title for name, title in COLUMNS.items() if any(name in row for row in rows)}
    parts = [_markdown(rows, TEXTS | columns)] if rows else []
    return "\n\n".join([*parts, _markdown(startup, STARTUP)] if startup else parts)


def _markdown(rows: list[Row], columns: dict[str, str]) -> str:
    lines = [list(columns.values()), ["---"] * len(columns)]
    lines += [[number(row[name]) if name in row else "-" for name in columns] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _csv(rows: list[Row]) -> str:
    text = io.StringIO()
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name != ANSWERS]
    writer = csv.DictWriter(text, fieldnames=names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().rstrip()


def number(value: object) -> str:
    """Format text and integers unchanged, other numbers with three significant digits and no exponent."""
    if not isinstance(value, float):
        return str(value)
    size = abs(value)
    return f"{value:,.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"
