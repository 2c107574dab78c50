"""Plots the table with matplotlib, which is optional."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

PANELS = {
    "decode_1_tok_s": "decode, batch 1, tokens/s",
    "prefill_tok_s": "prefill, tokens/s",
    "decode_16_tok_s": "decode, 16 rows, tokens/s",
    "peak_mb": "peak memory, MB",
}


def is_available() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def draw(rows: list[dict[str, Any]], target: Path) -> None:
    """Write a plot in the format of the file's extension: a line of panels per model, a bar per row.

    A mark above a decode bar shows the limit set by memory bandwidth.
    """
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(row["model"] for row in rows))
    programs = list(dict.fromkeys(row["program"] for row in rows))
    highest = max(sum(row["model"] == model for row in rows) for model in models)
    size = (4.5 * len(PANELS), 1.2 + (0.8 + 0.28 * highest) * len(models))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(models), len(PANELS), squeeze=False)
    for line, model in zip(grid, models, strict=True):
        of_model = [row for row in rows if row["model"] == model]
        labels = [f"{row['program']} {row['weights']}" for row in of_model]
        colors = [f"C{programs.index(row['program']) % 10}" for row in of_model]
        places = range(len(of_model))
        for axes, (name, title) in zip(line, PANELS.items(), strict=True):
            values = [row.get(name, 0.0) for row in of_model]
            axes.bar_label(axes.barh(places, values, color=colors), fmt="{:.4g}", padding=2, fontsize=7)
            if name == "decode_1_tok_s":
                limits = [(place, row[name] / row["roof"]) for place, row in enumerate(of_model) if row.get("roof")]
                axes.scatter([limit for _, limit in limits], [place for place, _ in limits], marker="|", color="black")
            axes.set_title(f"{model}: {title}", fontsize=9)
            axes.margins(x=0.15)
            axes.set_yticks(places, labels if axes is line[0] else [""] * len(labels), fontsize=7)
            axes.invert_yaxis()
    figure.savefig(target, dpi=120)
