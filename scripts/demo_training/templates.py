"""Expands the alternatives of a template: `[ran|walked] home`."""

from __future__ import annotations

import random
import re


def expand(template: str, rng: random.Random) -> str:
    """Choose one alternative of each `[a|b]`."""
    return re.sub(r"\[([^\[\]]*)\]", lambda match: rng.choice(match[1].split("|")), template)
