"""Builds reports as one HTML file: texts, tables, and small SVG plots (bars, intervals, distributions, histograms).

Knows texts and numbers; knows nothing about models. The markup is in `page.jinja`, where Jinja escapes every text. A
page loads no other file and runs no script.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markupsafe import Markup

# Colors of series that most people with color blindness can tell apart (Okabe and Ito).
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 110rem; margin: 2rem auto; padding: 0 1.5rem; color: #222 }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse; margin: .5rem 0 } .wide { overflow-x: auto }
th, td { border-bottom: 1px solid #ddd; padding: .25rem 1.2rem .25rem 0; text-align: left; vertical-align: top }
td { overflow-wrap: anywhere } td.short { white-space: nowrap } tbody tr:hover { background: #f4f7fa }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
td.text { white-space: pre-wrap; min-width: 14rem }
mark { background: #ffe3a3; color: inherit; border-radius: 2px }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(40rem, 100%), 1fr)); gap: 0 2.5rem }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); gap: 1.5rem 2.5rem }
.plots { margin: 1rem 0 } figure { margin: 0; max-width: 36rem } figcaption { font-weight: 600 }
svg { display: block; width: 100%; height: auto }
.good { color: #00684a } .bad { color: #a33a00 } .note { color: #555 }
svg text { font: 11px system-ui, sans-serif; fill: #333 }
"""
WIDTH, LABELS, ROW, BAR = 440, 150, 22, 14
AXIS, GRID, INK = "#888", "#ddd", "#222"
# Longer texts are not compared word by word: the time is quadratic in their length.
MOST_WORDS = 1000
_WORDS = re.compile(r"\s+|\S+")


@dataclass(frozen=True)
class Marked:
    """A text with its differences from another one marked: extra words, and positions of missing words."""

    text: str
    other: str

    def html(self) -> Markup:
        return _macro("marked", list(self._pieces()))

    def _pieces(self) -> Iterator[tuple[str, str | None]]:
        """Yield pieces of the text; a marked piece comes with the words of the other text that it lacks."""
        ours, theirs = _WORDS.findall(self.text), _WORDS.findall(self.other)
        if len(ours) > MOST_WORDS or len(theirs) > MOST_WORDS:
            yield self.text, None
            return
        for kind, start, end, first, last in SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes():
            piece, missing = "".join(ours[start:end]), "".join(theirs[first:last]).strip()
            if kind == "equal":
                yield piece, None
            elif piece.strip() or missing:
                yield piece, missing


Cell = str | float | Marked | None


@dataclass(frozen=True)
class Text:
    x: float
    y: float
    text: str
    anchor: str
    tip: str = ""
    kind: str = "text"


@dataclass(frozen=True)
class Line:
    points: Sequence[tuple[float, float]]
    color: str = AXIS
    width: float = 1
    tip: str = ""
    kind: str = "line"


@dataclass(frozen=True)
class Bar:
    x: float
    y: float
    width: float
    height: float
    color: str
    tip: str
    kind: str = "bar"


@dataclass(frozen=True)
class Dot:
    x: float
    y: float
    color: str
    tip: str
    kind: str = "dot"


Shape = Text | Line | Bar | Dot


@cache
def _macros() -> Any:
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=False)
    environment.filters["coordinate"] = lambda value: f"{value:.1f}"
    return environment.get_template("page.jinja").module


def _macro(name: str, *arguments: Any) -> Markup:
    made: Markup = getattr(_macros(), name)(*arguments)
    return made


def page(title: str, parts: Sequence[Markup]) -> str:
    """The whole document."""
    from markupsafe import Markup

    return str(_macro("page", title, Markup(STYLE), parts))


def heading(text: str) -> Markup:
    return _macro("element", "h2", text)


def subheading(text: str) -> Markup:
    return _macro("element", "h3", text)


def paragraph(text: str, kind: str = "") -> Markup:
    return _macro("element", "p", text, kind)


def together(parts: Sequence[Markup]) -> Markup:
    """Join parts one after the other."""
    from markupsafe import Markup

    return Markup("").join(parts)


def columns(parts: Sequence[Markup]) -> Markup:
    """Place parts side by side if the page is wide enough, else one below the other."""
    return _macro("columns", parts)


def plots(figures: Sequence[Markup]) -> Markup:
    """Place figures in as many columns as fit."""
    return _macro("plots", figures)


def table(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Markup:
    """A table; numbers are right-aligned, long texts wrap."""
    kinds = [_kind([row[column] for row in rows]) for column in range(len(header))]
    cells = [[cell.html() if isinstance(cell, Marked) else show(cell) for cell in row] for row in rows]
    return _macro("table", header, cells, kinds)


def show(value: str | float | None) -> str:
    """The text of a cell: four significant digits for a number; a dash for None, NaN and infinity."""
    if isinstance(value, str):
        return value
    if value is None or not math.isfinite(value):
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.4g}" if abs(value) < 1e6 else f"{value:.3e}"


def interval(low: float, high: float) -> str:
    """The text of a cell with the bounds of an interval."""
    return f"{show(low)} to {show(high)}" if math.isfinite(low) and math.isfinite(high) else "-"


def ticks(low: float, high: float, wanted: int = 6) -> list[float]:
    """Round numbers from `low` to `high`: multiples of 1, 2 or 5 times a power of ten, about `wanted` of them."""
    if not high > low:
        return [low]
    rough = (high - low) / max(wanted - 1, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def round_up(value: float) -> float:
    """The end of an axis that starts at 0 and includes `value`: the next tick."""
    if not value > 0:
        return 1.0
    marks = ticks(0, value)
    step = marks[1] - marks[0]
    return math.ceil(value / step - 1e-9) * step


def bars(
    title: str,
    values: Mapping[str, Mapping[str, tuple[float, float, float]]],
    most: float | None = None,
    unit: str = "",
) -> Markup:
    """Horizontal bars with their intervals: group to series to (value, low, high).

    Args:
        most: end of the axis, which begins at 0; None to fit the largest bound.
        unit: unit of the values, shown after the numbers of the axis.
    """
    finite = [
        bound for group in values.values() for triple in group.values() for bound in triple if math.isfinite(bound)
    ]
    top = most or round_up(max([*finite, 0.0]))
    series = _series(values)
    scale = (WIDTH - LABELS - 60) / top
    height = 4.0 + sum(BAR * max(len(found), 1) + 8 for found in values.values())
    shapes: list[Shape] = []
    for tick in ticks(0, top):
        x = LABELS + scale * tick
        shapes.append(Line([(x, 0), (x, height)], GRID if tick else AXIS))
        shapes.append(Text(x, height + 13, _tick(tick, unit if tick else ""), "middle"))
    y = 4.0
    for group, found in values.items():
        shapes.append(_label(LABELS - 8, y + BAR * max(len(found), 1) / 2 + 4, group, "end"))
        for name, triple in found.items():
            shapes += _bar(group, name, triple, y, scale, series[name])
            y += BAR
        y += 8
    return _figure(title, series, shapes, height + 18)


def _bar(
    group: str, name: str, triple: tuple[float, float, float], y: float, scale: float, color: str
) -> Iterator[Shape]:
    value, low, high = triple
    if math.isfinite(value):
        has_interval = math.isfinite(low) and math.isfinite(high)
        tip = f"{group}, {name}: {show(value)}" + (f" ({interval(low, high)})" if has_interval else "")
        yield Bar(LABELS, y + 1, scale * max(value, 0), BAR - 2, color, tip)
        if has_interval:
            left, right = (LABELS + scale * max(bound, 0) for bound in (low, high))
            yield Line([(left, y + BAR / 2), (right, y + BAR / 2)], INK)
    yield Text(WIDTH - 50, y + BAR / 2 + 4, show(value), "start")


def intervals(title: str, values: Mapping[str, tuple[float, float, float]]) -> Markup:
    """Points with their intervals around a line at zero: name to (value, low, high). Each has its own scale."""
    shapes: list[Shape] = []
    y, middle, half = 4.0, (WIDTH + LABELS) / 2, (WIDTH - LABELS) / 2 - 12
    for name, triple in values.items():
        shapes.append(_label(LABELS - 8, y + ROW / 2 + 4, name, "end"))
        finite = [abs(bound) for bound in triple if math.isfinite(bound)]
        most = max([*finite, 0.0]) or 1.0
        if len(finite) == 3:
            value, low, high = (middle + half * bound / most for bound in triple)
            tip = f"{name}: {show(triple[0])} ({show(triple[1])} to {show(triple[2])})"
            shapes.append(Line([(low, y + ROW / 2), (high, y + ROW / 2)], COLORS[0], 2))
            shapes.append(Dot(value, y + ROW / 2, COLORS[0], tip))
        y += ROW + 4
    shapes += [Line([(middle, 0), (middle, y)]), Text(middle, y + 13, "0", "middle")]
    return _figure(title, {}, shapes, y + 18)


def distributions(title: str, values: Mapping[str, Sequence[tuple[float, int]]], unit: str) -> Markup:
    """Cumulative distributions: series to (value, count), smallest value first."""
    series = _series({"": values})
    bottom, top, left, right = 170.0, 10.0, 44.0, WIDTH - 24.0
    points = [value for found in values.values() for value, _ in found]
    high = round_up(max([*points, 0.0]))
    scale = (right - left) / high
    shapes: list[Shape] = []
    for share in (0, 25, 50, 75, 100):
        y = bottom - (bottom - top) * share / 100
        shapes.append(Line([(left, y), (right, y)], GRID if share else AXIS))
        shapes.append(Text(left - 6, y + 4, f"{share} %", "end"))
    shapes.append(Line([(left, top), (left, bottom)]))
    for tick in ticks(0, high):
        shapes.append(Text(left + scale * tick, bottom + 16, _tick(tick, unit if tick else ""), "middle"))
    for name, found in values.items():
        total, so_far = sum(often for _, often in found) or 1, 0
        path = [(left, bottom)]
        for value, often in found:
            x = left + scale * value
            path.append((x, path[-1][1]))
            so_far += often
            path.append((x, bottom - (bottom - top) * so_far / total))
        shapes.append(Line([*path, (right, path[-1][1])], series[name], 2))
    return _figure(title, series, shapes, bottom + 24)


def histogram(title: str, values: Mapping[str, Sequence[tuple[float, float, int]]], unit: str) -> Markup:
    """Vertical bars: series to bins (begin, end, count). Several series stand side by side within a bin.

    Args:
        unit: unit of the bins' bounds.
    """
    series = _series({"": values})
    bottom, top, left, right = 170.0, 10.0, 56.0, WIDTH - 24.0
    bins = [found for part in values.values() for found in part]
    low, high = min((found[0] for found in bins), default=0.0), max((found[1] for found in bins), default=1.0)
    high = high if high > low else low + 1
    highest = round_up(max((found[2] for found in bins), default=0))
    scale = (right - left) / (high - low)
    shapes: list[Shape] = []
    for tick in ticks(0, highest):
        y = bottom - (bottom - top) * tick / highest
        shapes += [Line([(left, y), (right, y)], GRID if tick else AXIS), Text(left - 6, y + 4, _tick(tick), "end")]
    for tick in ticks(low, high):
        shapes.append(Text(left + scale * (tick - low), bottom + 16, _tick(tick, unit if tick else ""), "middle"))
    for place, (name, part) in enumerate(values.items()):
        for begin, end, often in part:
            width = scale * (end - begin) / len(values)
            x, height = left + scale * (begin - low) + place * width, (bottom - top) * often / highest
            tip = f"{show(float(begin))} to {show(float(end))} {unit}: {often:,}"
            shapes.append(Bar(x + 0.5, bottom - height, max(width - 1, 0.5), height, series[name], tip))
    return _figure(title, series, shapes, bottom + 24)


def _kind(cells: Sequence[Cell]) -> str:
    if cells and all(cell is None or isinstance(cell, (int, float)) for cell in cells):
        return "number"
    longest = max((len(_plain(cell)) for cell in cells), default=0)
    return "text" if longest > 40 else "short" if longest <= 24 else ""


def _plain(cell: Cell) -> str:
    return cell.text if isinstance(cell, Marked) else cell if isinstance(cell, str) else ""


def _tick(value: float, unit: str = "") -> str:
    text = f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{text} {unit}".rstrip()


def _series(values: Mapping[str, Mapping[str, object]]) -> dict[str, str]:
    names = list(dict.fromkeys(name for group in values.values() for name in group))
    return {name: COLORS[index % len(COLORS)] for index, name in enumerate(names)}


def _figure(title: str, legend: Mapping[str, str], shapes: Sequence[Shape], height: float) -> Markup:
    return _macro("figure", title, legend, WIDTH, height, shapes)


def _label(x: float, y: float, text: str, anchor: str) -> Text:
    """A text shortened to fit, with the whole text as its tooltip."""
    return Text(x, y, text if len(text) <= 24 else f"{text[:23]}…", anchor, text)
