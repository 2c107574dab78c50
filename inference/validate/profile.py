"""The profile of a set of prompts: counts, lengths, duplicates, scripts, labels, outliers.

Knows texts and numbers; knows nothing about files or pages. Reads each row once and does not keep its text.
"""

from __future__ import annotations

import importlib.util
import math
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np

from inference.errors import InferenceError
from inference.inputs.prompts import Prompt
from inference.validate.rows import DataRow

PERCENTILES = (1, 10, 50, 90, 99)
BINS = 30
# Maximum number of rows to list as examples of a problem.
EXAMPLES = 20
# Words per shingle, and the minimum estimated Jaccard similarity of near duplicates.
SHINGLE, SIMILAR = 3, 0.8
# Tukey's "far out": more than this many interquartile ranges from the quartiles.
FAR_OUT = 3.0
_WHITESPACE = frozenset("\n\r\t")
Counted = tuple[int, bool]


@dataclass
class Profile:
    """The profile of a set of prompts.

    Attributes:
        chars: length of each valid row in characters.
        tokens: length of each valid row in tokens.
        invalid: rows without a usable prompt; `errors` has the reasons of the first ones.
        near_duplicates: rows that are nearly equal to an earlier one; None if they were not counted.
    """

    rows: int = 0
    invalid: int = 0
    duplicates: int = 0
    near_duplicates: int | None = None
    control_characters: int = 0
    over_context: int = 0
    chars: array[int] = field(default_factory=lambda: array("q"))
    tokens: array[int] = field(default_factory=lambda: array("q"))
    scripts: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    outliers: list[tuple[str, int]] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        """Return all figures that expectations can name."""
        found: dict[str, float] = {"rows": self.rows}
        counts = ("invalid", "duplicates", "near_duplicates", "control_characters", "over_context")
        for name in counts:
            if (count := getattr(self, name)) is not None:
                found |= {name: count, f"{name}_share": count / self.rows if self.rows else 0.0}
        for name in ("chars", "tokens"):
            found |= {f"{name}_{key}": value for key, value in spread(getattr(self, name)).items()}
        for name, shares in (("script", self.scripts), ("label", self.labels)):
            total = sum(shares.values())
            found |= {f"{name}_share@{key}": count / total for key, count in shares.most_common()}
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return the whole profile, for JSON."""
        return {
            "figures": {name: value if math.isfinite(value) else None for name, value in self.figures().items()},
            "histograms": {name: histogram(getattr(self, name)) for name in ("chars", "tokens")},
            "scripts": dict(self.scripts.most_common()),
            "labels": dict(self.labels.most_common()),
            "errors": self.errors,
            "outliers": [{"where": where, "chars": length} for where, length in self.outliers],
        }


def profile_of(rows: Iterable[DataRow], count_tokens: Callable[[int, Prompt], Counted]) -> Profile:
    """Profile rows.

    Args:
        count_tokens: given a row's number and prompt, returns its tokens and whether they exceed the model's context;
            raises InferenceError for a prompt that cannot be encoded.
    """
    profile, seen, near, places = Profile(), set(), NearDuplicates.new(), []
    for number, row in enumerate(rows):
        profile.rows += 1
        problem = row.error
        if row.prompt is not None:
            try:
                tokens, is_over = count_tokens(number, row.prompt)
            except InferenceError as error:
                problem = str(error)
        if row.label is not None:
            profile.labels[row.label] += 1
        if problem is not None or row.prompt is None:
            profile.invalid += 1
            if len(profile.errors) < EXAMPLES:
                profile.errors.append(str(problem))
            continue
        text = text_of(row.prompt)
        profile.chars.append(len(text))
        profile.tokens.append(tokens)
        places.append(row.where)
        profile.over_context += is_over
        profile.control_characters += any(_is_control(char) for char in text)
        profile.scripts[main_script(text)] += 1
        digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        is_same = digest in seen
        profile.duplicates += is_same
        seen.add(digest)
        if near is not None and not is_same:
            near.add(number, text)
    profile.near_duplicates = None if near is None else near.count
    profile.outliers = _outliers(profile.chars, places)
    return profile


def text_of(prompt: Prompt) -> str:
    """Return a prompt as text: all messages of a chat, or the ids of a prompt of token ids."""
    if prompt.messages is not None:
        return "\n".join(str(message.get("content") or "") for message in prompt.messages)
    return prompt.text if prompt.text is not None else " ".join(map(str, prompt.token_ids or ()))


def spread(values: array[int]) -> dict[str, float]:
    """Return mean, standard deviation, extremes and percentiles; NaN without values."""
    names = ("mean", "std", "min", "max", *(f"p{percent}" for percent in PERCENTILES))
    if not values:
        return dict.fromkeys(names, math.nan)
    numbers = np.frombuffer(values, np.int64)
    found = (numbers.mean(), numbers.std(), numbers.min(), numbers.max(), *np.percentile(numbers, PERCENTILES))
    return {name: float(value) for name, value in zip(names, found, strict=True)}


def histogram(values: array[int], bounds: tuple[float, float] | None = None) -> list[tuple[float, float, int]]:
    """Return bins of equal width: begin, end, count."""
    if not values:
        return []
    numbers = np.frombuffer(values, np.int64)
    low, high = bounds or (float(numbers.min()), float(numbers.max()))
    counts, edges = np.histogram(numbers, min(BINS, int(high - low) + 1), (low, max(high, low + 1)))
    return [(float(edges[i]), float(edges[i + 1]), int(count)) for i, count in enumerate(counts)]


@lru_cache(maxsize=1 << 16)
def _script(char: str) -> str | None:
    """Return the script of a letter (the first word of its Unicode name), or None for other characters."""
    return unicodedata.name(char, "UNKNOWN").split()[0] if char.isalpha() else None


def main_script(text: str) -> str:
    """Return the script that most letters have: `LATIN`, `CJK`, `CYRILLIC`, ...; `NONE` without letters."""
    counts = Counter(script for char in text if (script := _script(char)) is not None)
    return counts.most_common(1)[0][0] if counts else "NONE"


def _is_control(char: str) -> bool:
    return char not in _WHITESPACE and unicodedata.category(char) in ("Cc", "Cs", "Co", "Cn")


def _outliers(lengths: array[int], places: list[str]) -> list[tuple[str, int]]:
    """Return the rows whose length is far outside the quartiles, the farthest first."""
    if not lengths:
        return []
    numbers = np.frombuffer(lengths, np.int64)
    first, median, third = np.percentile(numbers, (25, 50, 75))
    reach = FAR_OUT * (third - first)
    far = np.flatnonzero((numbers < first - reach) | (numbers > third + reach))
    order = sorted(far, key=lambda index: (-abs(numbers[index] - median), index))
    return [(places[index], int(numbers[index])) for index in order[:EXAMPLES]]


class NearDuplicates:
    """Counts texts that are nearly equal to an earlier one, by MinHash (Broder, 1997) of their shingles of words."""

    def __init__(self) -> None:
        from datasketch import MinHash, MinHashLSH

        self._minhash = MinHash
        self._index = MinHashLSH(threshold=SIMILAR, num_perm=64)
        self.count = 0

    @classmethod
    def new(cls) -> NearDuplicates | None:
        """Make a counter; None if datasketch is not installed."""
        return cls() if importlib.util.find_spec("datasketch") else None

    def add(self, number: int, text: str) -> None:
        words = text.lower().split()
        pieces = {" ".join(words[i : i + SHINGLE]) for i in range(max(len(words) - SHINGLE + 1, 1))}
        signature = self._minhash(num_perm=64, seed=1)
        signature.update_batch([piece.encode("utf-8", "surrogatepass") for piece in pieces])
        similar = self._index.query(signature)
        self.count += bool(similar)
        self._index.insert(number, signature)
