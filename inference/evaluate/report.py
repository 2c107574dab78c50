"""The HTML report of an evaluation: scores, slices, differences, times, and the rows.

Knows pages; all figures come from `result`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from inference.evaluate import html
from inference.evaluate.gate import Verdict
from inference.evaluate.result import ALL, Comparison, Evaluation, Scores, latencies
from inference.evaluate.scores import METRICS

if TYPE_CHECKING:
    from markupsafe import Markup

# Display names of an answer's times.
TIMES = {"ttft_seconds": "time to first token", "total_seconds": "time to last token"}

# Number of rows on the page, worst first.
SHOWN = 100


def report(evaluation: Evaluation, verdicts: Sequence[Verdict]) -> str:
    """Render the whole page."""
    other = evaluation.comparison
    title = f"Evaluation of {evaluation.model}" + (f" beside {name_of_other(evaluation, other)}" if other else "")
    parts = [html.paragraph(_first_line(evaluation))]
    scores = [html.heading("Scores") + _scores(evaluation, ALL)]
    parts += [html.columns([*scores, _gate(verdicts)] if verdicts else scores), html.plots(_score_plots(evaluation))]
    if other:
        parts += [html.heading(f"Difference to {name_of_other(evaluation, other)}"), _differences(other, evaluation)]
    if len(evaluation.slices) > 1:
        slices = [html.subheading(name) + _scores(evaluation, name) for name in evaluation.slices[1:]]
        parts += [html.heading("Slices"), html.columns(slices)]
    parts += [html.heading("Times"), html.columns([_times(evaluation), _percentiles(evaluation)])]
    parts += [html.heading("Rows"), _rows(evaluation)]
    return html.page(title, parts)


def name_of_other(evaluation: Evaluation, other: Comparison) -> str:
    """A display name that tells the other model apart: both may be the same model with different settings."""
    return f"{other.model} (compared)" if other.model == evaluation.model else other.model


def _first_line(evaluation: Evaluation) -> str:
    sampling = evaluation.sampling
    return (
        f"{len(evaluation.rows):,} rows, {evaluation.num_failed:,} without an answer. Intervals hold "
        f"{sampling.confidence:.0%} of {sampling.samples:,} resamplings of the rows."
    )


def _gate(verdicts: Sequence[Verdict]) -> Markup:
    lines = [
        html.paragraph(f"{'kept' if verdict.passed else 'not kept'}: {verdict}", "good" if verdict.passed else "bad")
        for verdict in verdicts
    ]
    return html.heading("Thresholds") + html.together(lines)


def _scores(evaluation: Evaluation, name: str) -> Markup:
    other = evaluation.comparison
    confidence = f"{evaluation.sampling.confidence:.0%} interval"
    header = ["score", evaluation.model, confidence] + ([name_of_other(evaluation, other), confidence] if other else [])
    rows: list[list[html.Cell]] = []
    for metric, score in evaluation.scores[name].items():
        row: list[html.Cell] = [METRICS[metric].label, score.value, html.interval(score.low, score.high)]
        if other:
            theirs = other.scores[name][metric]
            row += [theirs.value, html.interval(theirs.low, theirs.high)]
        rows.append(row)
    return html.paragraph(f"{len(evaluation.slice_rows(name)):,} rows") + html.table(header, rows)


def _score_plots(evaluation: Evaluation) -> list[Markup]:
    """One plot per metric, with bars for all slices."""
    sides: dict[str, Scores] = {evaluation.model: evaluation.scores}
    if evaluation.comparison:
        sides[name_of_other(evaluation, evaluation.comparison)] = evaluation.comparison.scores
    figures = []
    for metric in evaluation.metrics:
        values = {
            name: {
                model: (scores[name][metric.name].value, scores[name][metric.name].low, scores[name][metric.name].high)
                for model, scores in sides.items()
            }
            for name in evaluation.slices
        }
        better = "more" if metric.higher_is_better else "less"
        figures.append(html.bars(f"{metric.label} ({better} is better)", values, metric.most, metric.unit))
    return figures


def _differences(other: Comparison, evaluation: Evaluation) -> Markup:
    found = other.differences[ALL]
    rows: list[list[html.Cell]] = []
    for name, score in found.items():
        verdict = verdict_of(name, score.low, score.high)
        rows.append([METRICS[name].label, score.value, html.interval(score.low, score.high), verdict])
    points = {METRICS[name].label: (score.value, score.low, score.high) for name, score in found.items()}
    figure = html.intervals(
        f"{evaluation.model} less {name_of_other(evaluation, other)}, each on a scale of its own", points
    )
    header = ["score", "difference", f"{evaluation.sampling.confidence:.0%} interval", ""]
    return html.columns([html.table(header, rows), figure])


def verdict_of(metric: str, low: float, high: float) -> str:
    """`better`, `worse`, `the same`, `may be chance`, or `not measured`."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return "not measured"
    if low <= 0 <= high:
        return "the same" if low == high else "may be chance"
    return "better" if (low > 0) == METRICS[metric].higher_is_better else "worse"


def _times(evaluation: Evaluation) -> Markup:
    sides = {evaluation.model: evaluation.rows}
    if evaluation.comparison:
        sides[name_of_other(evaluation, evaluation.comparison)] = evaluation.comparison.rows
    times = {
        name: [(second, 1) for second in sorted(row.total_seconds for row in rows if row.total_seconds is not None)]
        for name, rows in sides.items()
    }
    return html.distributions("Share of rows answered in time", times, "s")


def _percentiles(evaluation: Evaluation) -> Markup:
    """A table of the times; the other model's too, if there is one."""
    sides = {evaluation.model: evaluation.rows}
    if evaluation.comparison:
        sides[name_of_other(evaluation, evaluation.comparison)] = evaluation.comparison.rows
    rows: list[list[html.Cell]] = []
    for model, answers in sides.items():
        for name, percentiles in latencies(answers).items():
            rows.append([model, TIMES[name], *(percentiles[key] for key in ("p50", "p90", "p99"))])
    return html.table(["model", "", "p50, s", "p90, s", "p99, s"], rows)


def _rows(evaluation: Evaluation) -> Markup:
    scores = [evaluation.row_scores(index) for index in range(len(evaluation.rows))]
    shown = [metric.name for metric in evaluation.metrics if metric.name != "latency"]

    def worst_first(index: int) -> tuple[float, int]:
        first = evaluation.metrics[0]
        value = scores[index][first.name]
        goodness = value if first.higher_is_better else -value
        return (goodness if math.isfinite(goodness) else -math.inf, index)

    order = sorted(range(len(evaluation.rows)), key=worst_first)[:SHOWN]
    header = ["row", "prompt", "reference", evaluation.model]
    other = evaluation.comparison
    header += [name_of_other(evaluation, other)] if other else []
    rows: list[list[html.Cell]] = []
    for index in order:
        row = evaluation.rows[index]
        cells: list[html.Cell] = [row.custom_id, row.prompt, "\n".join(row.references), row.error or row.text]
        if other:
            theirs = other.rows[index]
            cells.append(theirs.error or html.Marked(theirs.text, row.error or row.text))
        rows.append([*cells, *(scores[index][name] for name in shown)])
    left = len(evaluation.rows) - len(order)
    parts = []
    if other:
        name = name_of_other(evaluation, other)
        parts.append(html.paragraph(f"Marked words are those that {name} answers differently.", "note"))
    parts.append(html.table([*header, *shown], rows))
    if left:
        parts.append(html.paragraph(f"The result file has {left:,} more rows."))
    return html.together(parts)
