"""A page of HTML in one file, and small plots in it as SVG: bars, points with intervals, and distributions.

Knows texts and numbers; knows nothing about models. Nothing is loaded from anywhere, no script is run, and every text
is escaped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from html import escape
from itertools import pairwise

# Colors of series, apart also for most of those who do not see all colors (Okabe and Ito).
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse; margin: .5rem 0 } .wide { overflow-x: auto }
th, td { border-bottom: 1px solid #ddd; padding: .25rem 1.2rem .25rem 0; text-align: left; vertical-align: top }
td { overflow-wrap: anywhere } td.short { white-space: nowrap } tbody tr:hover { background: #f4f7fa }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
td.text { white-space: pre-wrap; min-width: 14rem; max-width: 28rem }
mark { background: #ffe3a3; color: inherit; border-radius: 2px }
.plots { display: flex; flex-wrap: wrap; gap: 1.5rem 2.5rem; margin: 1rem 0 }
figure { margin: 0 } figcaption { font-weight: 600 } svg { max-width: 100%; height: auto }
.good { color: #00684a } .bad { color: #a33a00 } .note { color: #555 }
svg text { font: 11px system-ui, sans-serif; fill: #333 }
"""
WIDTH, LABELS, ROW, BAR = 440, 150, 22, 14
AXIS, GRID = "#888", "#ddd"
# Words of a text beyond which nothing is marked in it: the time grows with their square.
MOST_WORDS = 1000
_WORDS = re.compile(r"\s+|\S+")


@dataclass(frozen=True)
class Marked:
    """A text in which words are marked that another has not, or has elsewhere; and the places of those that are
    missing in it.
    """

    text: str
    other: str

    def html(self) -> str:
        ours, theirs = _WORDS.findall(self.text), _WORDS.findall(self.other)
        if len(ours) > MOST_WORDS or len(theirs) > MOST_WORDS:
            return escape(self.text)
        parts = []
        for kind, start, end, first, last in SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes():
            piece, missing = escape("".join(ours[start:end])), escape("".join(theirs[first:last]).strip())
            if kind == "equal":
                parts.append(piece)
            elif piece.strip() or missing:
                parts.append(f'<mark title="{missing}">{piece or "‸"}</mark>')
        return "".join(parts)


Cell = str | float | Marked | None


def page(title: str, parts: Sequence[str]) -> str:
    """The whole document; `parts` are HTML."""
    body = "\n".join(parts)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>\n'
        f"<body><h1>{escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def heading(text: str) -> str:
    return f"<h2>{escape(text)}</h2>"


def subheading(text: str) -> str:
    return f"<h3>{escape(text)}</h3>"


def paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def table(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A table; numbers stand to the right, long texts in columns that break."""
    kinds = [_kind([row[column] for row in rows]) for column in range(len(header))]
    head = "".join(f"<th{kind}>{escape(name)}</th>" for name, kind in zip(header, kinds, strict=True))
    lines = [
        "<tr>" + "".join(f"<td{kind}>{_cell(cell)}</td>" for cell, kind in zip(row, kinds, strict=True)) + "</tr>"
        for row in rows
    ]
    body = "\n".join(lines)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def plots(figures: Sequence[str]) -> str:
    """Figures side by side."""
    return f'<div class="plots">{"".join(figures)}</div>'


def show(value: str | float | None) -> str:
    """A cell: four digits that count, nothing for what is no number."""
    if isinstance(value, str):
        return value
    if value is None or not math.isfinite(value):
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.4g}" if abs(value) < 1e6 else f"{value:.3e}"


def interval(low: float, high: float) -> str:
    """A cell for the two ends of an interval."""
    return f"{show(low)} to {show(high)}" if math.isfinite(low) and math.isfinite(high) else "-"


def bars(title: str, values: Mapping[str, Mapping[str, tuple[float, float, float]]], most: float | None = None) -> str:
    """Horizontal bars with their intervals: group to series to (value, low, high).

    Args:
        most: where the scale ends, which begins at 0; at the largest bound where none is given.
    """
    finite = [
        bound for group in values.values() for triple in group.values() for bound in triple if math.isfinite(bound)
    ]
    top = most or max([*finite, 0.0]) or 1.0
    series = _series(values)
    scale = (WIDTH - LABELS - 60) / top
    height = 4.0 + sum(BAR * max(len(found), 1) + 8 for found in values.values())
    marks = []
    for part in (0.0, 0.5, 1.0):
        x = LABELS + scale * top * part
        marks += [_line(x, 0, x, height, GRID if part else AXIS), _text(x, height + 13, _tick(top * part), "middle")]
    y = 4.0
    for group, found in values.items():
        marks.append(_text(LABELS - 8, y + BAR * max(len(found), 1) / 2 + 4, group, "end"))
        for name, (value, low, high) in found.items():
            if math.isfinite(value):
                tip = f"{group}, {name}: {show(value)}"
                has_interval = math.isfinite(low) and math.isfinite(high)
                tip += f" ({interval(low, high)})" if has_interval else ""
                marks.append(_rectangle(LABELS, y + 1, scale * max(value, 0), BAR - 2, series[name], tip))
                if has_interval:
                    left, right = (LABELS + scale * max(bound, 0) for bound in (low, high))
                    marks.append(_line(left, y + BAR / 2, right, y + BAR / 2, "#222"))
            marks.append(_text(WIDTH - 50, y + BAR / 2 + 4, show(value), "start"))
            y += BAR
        y += 8
    return _figure(title, series, marks, height + 18)


def intervals(title: str, values: Mapping[str, tuple[float, float, float]]) -> str:
    """Points with their intervals around a line at zero: name to (value, low, high). Each has a scale of its own."""
    marks, y = [], 4.0
    middle = (WIDTH + LABELS) / 2
    half = (WIDTH - LABELS) / 2 - 12
    for name, triple in values.items():
        marks.append(_text(LABELS - 8, y + ROW / 2 + 4, name, "end"))
        finite = [abs(bound) for bound in triple if math.isfinite(bound)]
        most = max([*finite, 0.0]) or 1.0
        if len(finite) == 3:
            value, low, high = (middle + half * bound / most for bound in triple)
            tip = f"{name}: {show(triple[0])} ({show(triple[1])} to {show(triple[2])})"
            marks.append(_line(low, y + ROW / 2, high, y + ROW / 2, COLORS[0], 2))
            marks.append(
                f'<circle cx="{value:.1f}" cy="{y + ROW / 2:.1f}" r="4" fill="{COLORS[0]}">{_tip(tip)}</circle>'
            )
        y += ROW + 4
    marks += [_line(middle, 0, middle, y, AXIS), _text(middle, y + 13, "0", "middle")]
    return _figure(title, {}, marks, y + 18)


def distributions(title: str, values: Mapping[str, Sequence[tuple[float, int]]], unit: str) -> str:
    """The share of values that are at most so large: series to (value, how often), the smallest first."""
    series = _series({"": values})
    height, left, right = 170.0, 40.0, WIDTH - 10.0
    points = [value for found in values.values() for value, _ in found]
    low, high = (min(points), max(points)) if points else (0.0, 1.0)
    span = (high - low) or 1.0
    marks = []
    for share in (50, 90, 100, 0):
        y = height - (height - 10) * share / 100
        marks += [_line(left, y, right, y, GRID if share else AXIS)]
        marks += [_text(left - 6, y + 4, f"{share} %", "end")]
    marks.append(_line(left, 10, left, height, AXIS))
    for part, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        label = f"{_tick(low + span * part)} {unit}"
        marks.append(_text(left + (right - left) * part, height + 16, label, anchor))
    for name, found in values.items():
        total, so_far = sum(often for _, often in found) or 1, 0
        path = [(left, height)]
        for value, often in found:
            x = left + (right - left) * (value - low) / span
            path.append((x, path[-1][1]))
            so_far += often
            path.append((x, height - (height - 10) * so_far / total))
        path.append((right, path[-1][1]))
        marks += [_line(*a, *b, series[name], 2) for a, b in pairwise(path)]
    return _figure(title, series, marks, height + 24)


def _cell(cell: Cell) -> str:
    return cell.html() if isinstance(cell, Marked) else escape(show(cell))


def _kind(cells: Sequence[Cell]) -> str:
    if cells and all(cell is None or isinstance(cell, (int, float)) for cell in cells):
        return ' class="number"'
    longest = max((len(_plain(cell)) for cell in cells), default=0)
    return ' class="text"' if longest > 40 else ' class="short"' if longest <= 24 else ""


def _plain(cell: Cell) -> str:
    return cell.text if isinstance(cell, Marked) else cell if isinstance(cell, str) else ""


def _tick(value: float) -> str:
    return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _series(values: Mapping[str, Mapping[str, object]]) -> dict[str, str]:
    names = list(dict.fromkeys(name for group in values.values() for name in group))
    return {name: COLORS[index % len(COLORS)] for index, name in enumerate(names)}


def _figure(title: str, series: Mapping[str, str], marks: Sequence[str], height: float) -> str:
    legend = ""
    if len(series) > 1:
        legend = " ".join(
            f'<span style="color:{color}">&#9632;</span> {escape(name)}' for name, color in series.items()
        )
        legend = f"<div>{legend}</div>"
    svg = (
        f'<svg width="{WIDTH}" height="{height:.0f}" viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'aria-label="{escape(title)}">{"".join(marks)}</svg>'
    )
    return f"<figure><figcaption>{escape(title)}</figcaption>{legend}{svg}</figure>"


def _text(x: float, y: float, text: str, anchor: str) -> str:
    shown = text if len(text) <= 24 else f"{text[:23]}…"
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(shown)}{_tip(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, color: str, width: float = 1) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}" stroke-width="{width:g}"/>'


def _rectangle(x: float, y: float, width: float, height: float, color: str, tip: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{color}">{_tip(tip)}</rect>'


def _tip(text: str) -> str:
    return f"<title>{escape(text)}</title>"
