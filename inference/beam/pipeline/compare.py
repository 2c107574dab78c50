"""Compares steps that answered the same rows: how often they agree, and the lengths and times of their answers.

Workers gather compact figures, which are merged at the end. Knows rows and pages.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import combinations
from typing import TYPE_CHECKING, Any

import apache_beam as beam

from inference.beam.pipeline.files import write_file
from inference.beam.pipeline.row_state import RowState, prompt_text
from inference.beam.pipeline.steps import Graph
from inference.engine.percentiles import Percentiles
from inference.evaluate import html
from inference.evaluate.scores import normalized, token_f1

if TYPE_CHECKING:
    from markupsafe import Markup

# Number of rows to show, sampled by a hash of their names.
SHOWN = 100


@dataclass
class StepFigures:
    """The figures of one step."""

    rows: int = 0
    words: Counter[int] = field(default_factory=Counter)
    tokens: Counter[int] = field(default_factory=Counter)
    seconds: Percentiles = field(default_factory=Percentiles)

    def add(self, record: Mapping[str, Any]) -> None:
        self.rows += 1
        self.words[len((record["text"] or "").split())] += 1
        if record["completion_tokens"] is not None:
            self.tokens[record["completion_tokens"]] += 1
        if record["total_seconds"] is not None:
            self.seconds.add(record["total_seconds"])

    def merge(self, other: StepFigures) -> None:
        self.rows += other.rows
        self.words.update(other.words)
        self.tokens.update(other.tokens)
        self.seconds.update(other.seconds)

    def as_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "words": _spread(self.words),
            "completion_tokens": _spread(self.tokens),
            "total_seconds": self.seconds.as_dict(),
        }


@dataclass
class PairFigures:
    """The figures of two steps on the rows that both answered: rows, equal answers, and the sum of the word F1."""

    rows: int = 0
    same: int = 0
    overlap: float = 0.0

    def merge(self, other: PairFigures) -> None:
        self.rows, self.same, self.overlap = (
            self.rows + other.rows,
            self.same + other.same,
            self.overlap + other.overlap,
        )

    def as_dict(self) -> dict[str, Any]:
        rows = self.rows or 1
        return {"rows": self.rows, "same": self.same, "agreement": self.same / rows, "token_f1": self.overlap / rows}


@dataclass
class Figures:
    """All figures, and the rows with the smallest hashes."""

    steps: dict[str, StepFigures] = field(default_factory=dict)
    pairs: dict[tuple[str, str], PairFigures] = field(default_factory=dict)
    shown: list[tuple[int, str, dict[str, Any]]] = field(default_factory=list)

    def show(self, place: int, key: str, row: dict[str, Any]) -> None:
        entry = (-place, key, row)
        if len(self.shown) < SHOWN:
            heapq.heappush(self.shown, entry)
        else:
            heapq.heappushpop(self.shown, entry)


class CompareSteps(beam.CombineFn):
    """Gathers figures from rows."""

    def __init__(self, graph: Graph):
        self._names = [step.name for step in graph.steps]

    def create_accumulator(self) -> Figures:
        return Figures()

    def add_input(self, figures: Figures, state: RowState) -> Figures:
        answers = {name: state.answers[name] for name in self._names if name in state.answers}
        for name, record in answers.items():
            figures.steps.setdefault(name, StepFigures()).add(record)
        for one, other in combinations(answers, 2):
            left, right = answers[one]["text"] or "", answers[other]["text"] or ""
            pair = figures.pairs.setdefault((one, other), PairFigures())
            pair.merge(PairFigures(1, normalized(left) == normalized(right), token_f1(left, right)))
        digest = blake2b(state.key.encode("utf-8", "replace"), digest_size=7).digest()
        texts = {name: record["text"] for name, record in answers.items()}
        figures.show(
            int.from_bytes(digest, "big"),
            state.key,
            {"custom_id": state.key, "prompt": prompt_text(state), "answers": texts},
        )
        return figures

    def merge_accumulators(self, parts: Any) -> Figures:
        whole = Figures()
        for part in parts:
            for name, figures in part.steps.items():
                whole.steps.setdefault(name, StepFigures()).merge(figures)
            for names, pair in part.pairs.items():
                whole.pairs.setdefault(names, PairFigures()).merge(pair)
            for place, key, row in part.shown:
                whole.show(-place, key, row)
        return whole

    def extract_output(self, figures: Figures) -> Figures:
        return figures


class WriteComparison(beam.DoFn):
    """Writes the page and, beside it, the figures as JSON.

    Args:
        path: path of the page; ends in `.html`.
    """

    def __init__(self, path: str, graph: Graph):
        self._path = path
        self._names = [step.name for step in graph.steps]

    def process(self, figures: Figures) -> Iterator[str]:
        values = comparison(figures, self._names)
        data = json.dumps(values, indent=1, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        write_file(json_path(self._path), data)
        write_file(self._path, report(figures, values).encode("utf-8", "replace"))
        yield self._path


def json_path(page_path: str) -> str:
    """The path of the JSON figures beside a page."""
    return page_path.removesuffix(".html") + ".json"


def comparison(figures: Figures, names: list[str]) -> dict[str, Any]:
    """The figures as JSON values."""
    ordered = [name for name in names if name in figures.steps]
    return {
        "steps": {name: figures.steps[name].as_dict() for name in ordered},
        "pairs": [
            {"steps": list(pair), **figures.pairs[pair].as_dict()}
            for pair in combinations(names, 2)
            if pair in figures.pairs
        ],
        "rows": [row for _, _, row in sorted(figures.shown, key=lambda entry: (-entry[0], entry[1]))],
    }


def report(figures: Figures, values: Mapping[str, Any]) -> str:
    """The HTML page."""
    steps = list(values["steps"])
    header = ["step", "rows", "words (median)", "tokens (median)", "p50, s", "p90, s", "p99, s"]
    rows = [
        [name, found["rows"], found["words"]["p50"], found["completion_tokens"]["p50"]]
        + [found["total_seconds"][key] for key in ("p50", "p90", "p99")]
        for name, found in values["steps"].items()
    ]
    tables = [html.heading("Steps") + html.table(header, rows)]
    if values["pairs"]:
        pairs = [
            [" / ".join(pair["steps"]), pair["rows"], pair["same"], pair["agreement"], pair["token_f1"]]
            for pair in values["pairs"]
        ]
        named = ["steps", "rows of both", "same answer", "share", "F1 of their words"]
        tables.append(html.heading("Agreement") + html.table(named, pairs))
    words = {
        name: sorted((float(length), often) for length, often in figures.steps[name].words.items()) for name in steps
    }
    times = {name: figures.steps[name].seconds.buckets() for name in steps}
    plots = [html.distributions("Share of answers by length", words, "words")]
    if any(times.values()):
        plots.append(html.distributions("Share of rows answered in time", times, "s"))
    shares = {
        " / ".join(pair["steps"]): {"agreement": (pair["agreement"], float("nan"), float("nan"))}
        for pair in values["pairs"]
    }
    if shares:
        plots.append(html.bars("Share of rows with the same answer", shares, 1.0))
    parts = [html.columns(tables), html.plots(plots), html.heading("Rows"), _side_by_side(values["rows"], steps)]
    return html.page(f"Comparison of {', '.join(steps)}", parts)


def _side_by_side(rows: Sequence[Mapping[str, Any]], steps: Sequence[str]) -> Markup:
    """A table of rows with their answers; differences from the first step's answer are marked."""
    lines: list[list[html.Cell]] = []
    for row in rows:
        answers = {name: text for name in steps if (text := row["answers"].get(name)) is not None}
        first = next(iter(answers), None)
        cells = [
            html.Marked(text, answers[str(first)])
            if (text := answers.get(name)) is not None and name != first
            else answers.get(name)
            for name in steps
        ]
        lines.append([row["custom_id"], row["prompt"], *cells])
    note = f"{len(rows):,} rows, drawn by their names. Marked words differ from the row's first answer."
    return html.paragraph(note, "note") + html.table(["row", "prompt", *steps], lines)


def _spread(counts: Counter[int]) -> dict[str, float | None]:
    """Mean, median, minimum and maximum."""
    total = sum(counts.values())
    if not total:
        return {"mean": None, "p50": None, "min": None, "max": None}
    seen, median = 0, min(counts)
    for value in sorted(counts):
        seen += counts[value]
        if 2 * seen >= total:
            median = value
            break
    mean = sum(value * often for value, often in counts.items()) / total
    return {"mean": mean, "p50": median, "min": min(counts), "max": max(counts)}
