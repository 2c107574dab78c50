"""The HTML report of a validation: expectations, figures, histograms, scripts, labels, invalid rows and outliers.

Knows pages; all figures come from `profile`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from inference.evaluate import html
from inference.evaluate.gate import Verdict
from inference.validate.profile import Profile, histogram

if TYPE_CHECKING:
    from markupsafe import Markup

# Maximum number of scripts or labels to show, the most frequent first.
MOST_NAMES = 20
Profiles = Mapping[str, Profile]


def report(profiles: Profiles, distances: Mapping[str, float], verdicts: Sequence[Verdict]) -> str:
    """Render the whole page.

    Args:
        profiles: profiles, keyed by the name of their data; the first one is validated.
        distances: distances from the second profile, if any.
    """
    name, profile = next(iter(profiles.items()))
    side: list[Markup] = []
    if verdicts:
        lines = [
            html.paragraph(f"{'met' if verdict.passed else 'not met'}: {verdict}", "good" if verdict.passed else "bad")
            for verdict in verdicts
        ]
        side.append(html.heading("Expectations") + html.together(lines))
    if distances:
        drift = html.table(["distribution", "distance, 0 to 1"], [[key, value] for key, value in distances.items()])
        side.append(html.heading("Drift") + drift)
    figures = [html.heading("Figures") + _figures(profiles), html.together(side)]
    page = [html.columns(figures), html.heading("Distributions"), html.plots(_plots(profiles))]
    if profile.errors:
        invalid = html.table(["reason"], [[error] for error in profile.errors])
        page.append(html.heading(f"Invalid rows ({profile.invalid:,})") + invalid)
    if profile.outliers:
        rows: list[list[html.Cell]] = [[where, length] for where, length in profile.outliers]
        page.append(html.heading("Outliers by length") + html.table(["row", "characters"], rows))
    return html.page(f"Validation of {name}", page)


def _figures(profiles: Profiles) -> Markup:
    figures = [profile.figures() for profile in profiles.values()]
    names = [name for name in dict.fromkeys(key for found in figures for key in found) if "@" not in name]
    rows: list[list[html.Cell]] = [
        [name, *(_whole(found.get(name)) for found in figures)] for name in names if not name.endswith("_share")
    ]
    return html.table(["figure", *profiles], rows)


def _whole(value: float | None) -> float | None:
    return int(value) if value is not None and math.isfinite(value) and value == int(value) else value


def _plots(profiles: Profiles) -> list[Markup]:
    figures = []
    for kind, unit in (("chars", "characters"), ("tokens", "tokens")):
        ends = [end for profile in profiles.values() for end in getattr(profile, kind)]
        if ends:
            bounds = float(min(ends)), float(max(ends))
            values = {name: histogram(getattr(profile, kind), bounds) for name, profile in profiles.items()}
            figures.append(html.histogram(f"Rows by length in {unit}", values, unit))
    for kind in ("scripts", "labels"):
        counts = {name: getattr(profile, kind) for name, profile in profiles.items()}
        if any(counts.values()):
            figures.append(html.bars(f"Share of rows by {kind.removesuffix('s')}", _shares(counts)))
    return figures


def _shares(counts: Mapping[str, Counter[str]]) -> dict[str, dict[str, tuple[float, float, float]]]:
    whole: Counter[str] = sum(counts.values(), Counter())
    none = math.nan
    return {
        name: {side: (found[name] / (sum(found.values()) or 1), none, none) for side, found in counts.items()}
        for name, _ in whole.most_common(MOST_NAMES)
    }
