"""An evaluation as a page for people: scores, slices, differences, times, and the rows themselves.

Knows pages; all figures come from `result`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from inference import page
from inference.evaluate.gate import Verdict
from inference.evaluate.metrics import METRICS
from inference.evaluate.result import ALL, Comparison, Evaluation, Scores

# Rows that the page shows, the worst first.
SHOWN = 100


def report(evaluation: Evaluation, verdicts: Sequence[Verdict]) -> str:
    """The whole page."""
    other = evaluation.comparison
    title = f"Evaluation of {evaluation.model}" + (f" beside {name_of_other(evaluation, other)}" if other else "")
    parts = [page.paragraph(_first_line(evaluation))]
    parts += [_gate(verdicts)] if verdicts else []
    parts += [page.heading("Scores"), _scores(evaluation, ALL), page.plots(_score_plots(evaluation))]
    if other:
        parts += [page.heading(f"Difference to {name_of_other(evaluation, other)}"), _differences(other, evaluation)]
    if len(evaluation.slices) > 1:
        parts += [page.heading("Slices")]
        parts += [page.subheading(name) + _scores(evaluation, name) for name in evaluation.slices[1:]]
    parts += [page.heading("Times"), page.plots([_times(evaluation)])]
    parts += [page.heading("Rows"), _rows(evaluation)]
    return page.page(title, parts)


def name_of_other(evaluation: Evaluation, other: Comparison) -> str:
    """What to call the model that is compared with: not as the first, which may be the same with other settings."""
    return f"{other.model} (compared)" if other.model == evaluation.model else other.model


def _first_line(evaluation: Evaluation) -> str:
    sampling = evaluation.sampling
    return (
        f"{len(evaluation.rows):,} rows, {evaluation.num_failed:,} without an answer. Intervals hold "
        f"{sampling.confidence:.0%} of {sampling.samples:,} resamplings of the rows."
    )


def _gate(verdicts: Sequence[Verdict]) -> str:
    lines = [
        page.paragraph(f"{'kept' if verdict.passed else 'not kept'}: {verdict}", "good" if verdict.passed else "bad")
        for verdict in verdicts
    ]
    return page.heading("Thresholds") + "".join(lines)


def _scores(evaluation: Evaluation, name: str) -> str:
    other = evaluation.comparison
    confidence = f"{evaluation.sampling.confidence:.0%} interval"
    header = ["score", evaluation.model, confidence] + ([name_of_other(evaluation, other), confidence] if other else [])
    rows: list[list[page.Cell]] = []
    for metric, score in evaluation.scores[name].items():
        row: list[page.Cell] = [metric, score.value, page.interval(score.low, score.high)]
        if other:
            theirs = other.scores[name][metric]
            row += [theirs.value, page.interval(theirs.low, theirs.high)]
        rows.append(row)
    return page.paragraph(f"{len(evaluation.slice_rows(name)):,} rows") + page.table(header, rows)


def _score_plots(evaluation: Evaluation) -> list[str]:
    """For each metric the bars of all slices."""
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
        figures.append(page.bars(f"{metric.name} ({better} is better)", values, metric.most))
    return figures


def _differences(other: Comparison, evaluation: Evaluation) -> str:
    found = other.differences[ALL]
    rows: list[list[page.Cell]] = []
    for name, score in found.items():
        verdict = verdict_of(name, score.low, score.high)
        rows.append([name, score.value, page.interval(score.low, score.high), verdict])
    points = {name: (score.value, score.low, score.high) for name, score in found.items()}
    figure = page.intervals(
        f"{evaluation.model} less {name_of_other(evaluation, other)}, each on a scale of its own", points
    )
    header = ["score", "difference", f"{evaluation.sampling.confidence:.0%} interval", ""]
    return page.table(header, rows) + page.plots([figure])


def verdict_of(metric: str, low: float, high: float) -> str:
    """`better`, `worse`, `the same`, or that the difference may be chance."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return "not measured"
    if low <= 0 <= high:
        return "the same" if low == high else "may be chance"
    return "better" if (low > 0) == METRICS[metric].higher_is_better else "worse"


def _times(evaluation: Evaluation) -> str:
    sides = {evaluation.model: evaluation.rows}
    if evaluation.comparison:
        sides[name_of_other(evaluation, evaluation.comparison)] = evaluation.comparison.rows
    times = {
        name: [(second, 1) for second in sorted(row.total_seconds for row in rows if row.total_seconds is not None)]
        for name, rows in sides.items()
    }
    return page.distributions("Share of rows answered within", times, "s")


def _rows(evaluation: Evaluation) -> str:
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
    rows: list[list[page.Cell]] = []
    for index in order:
        row = evaluation.rows[index]
        cells: list[page.Cell] = [row.custom_id, row.prompt, "\n".join(row.references), row.error or row.text]
        if other:
            theirs = other.rows[index]
            cells.append(theirs.error or page.Marked(theirs.text, row.error or row.text))
        rows.append([*cells, *(scores[index][name] for name in shown)])
    left = len(evaluation.rows) - len(order)
    more = page.paragraph(f"{left:,} more rows are in the result file.") if left else ""
    note = (
        page.paragraph(f"Marked is what {name_of_other(evaluation, other)} answers otherwise.", "note") if other else ""
    )
    return note + page.table([*header, *shown], rows) + more
