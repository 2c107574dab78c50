"""Scores of answers. Each is computed from sums over rows, so any subset or resampling of the rows can be scored
without reading the texts again.

`exact_match`: the answer equals a reference, ignoring whitespace around and between words.
`token_f1`: the word F1 of answer and reference, as in SQuAD 1.1 (Rajpurkar et al., 2016): lower case, without
punctuation and English articles; for the best reference.
`bleu`, `chrf`: corpus scores of sacrebleu (Post, 2018; Popovic, 2015), 0 to 100.
`perplexity`: exp of the mean negative log likelihood per token of the first reference, given the prompt.
`latency`: mean seconds from a row's arrival to its last token.
"""

from __future__ import annotations

import importlib.util
import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from inference.errors import ConfigError, did_you_mean
from inference.evaluate.answers import Answered

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Metric:
    """A score.

    Args:
        statistics: turns rows into numbers that can be summed, [rows, k].
        value: turns a sum [k] over rows into the score; NaN if there is nothing to score.
        most: the highest possible score; None if there is no bound.
        unit: unit of the score; empty for a plain number.
    """

    name: str
    higher_is_better: bool
    statistics: Callable[[Sequence[Answered]], np.ndarray]
    value: Callable[[np.ndarray], float]
    most: float | None = None
    unit: str = ""

    @property
    def label(self) -> str:
        """The name with its unit."""
        return f"{self.name}, {self.unit}" if self.unit else self.name


def normalized(text: str) -> str:
    """The text with single spaces between words and none around them."""
    return " ".join(text.split())


def words(text: str) -> list[str]:
    """The words of a text, as SQuAD defines them."""
    return _ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()


def token_f1(one: str, other: str) -> float:
    """F1 of the words of two texts, 0 to 1; 1 if neither has words."""
    left, right = words(one), words(other)
    if not left or not right:
        return float(left == right)
    same = sum((Counter(left) & Counter(right)).values())
    return 2 * same / (len(left) + len(right))


def _mean_of(score: Callable[[Answered], float | None]) -> Callable[[Sequence[Answered]], np.ndarray]:
    def statistics(rows: Sequence[Answered]) -> np.ndarray:
        scores = [score(row) for row in rows]
        return np.array([(value or 0.0, value is not None) for value in scores], np.float64).reshape(-1, 2)

    return statistics


def _ratio(total: np.ndarray) -> float:
    return float(total[0] / total[1]) if total[1] else math.nan


def _exact_match(row: Answered) -> float:
    return float(normalized(row.text) in {normalized(reference) for reference in row.references})


def _best_f1(row: Answered) -> float:
    return max(token_f1(row.text, reference) for reference in row.references)


def _reference_nats(rows: Sequence[Answered]) -> np.ndarray:
    return np.array([(row.reference_nats or 0.0, row.reference_tokens) for row in rows], np.float64).reshape(-1, 2)


def _perplexity(total: np.ndarray) -> float:
    return math.exp(min(total[0] / total[1], 700.0)) if total[1] else math.nan


def _sacrebleu(name: str, higher_is_better: bool, kind: str) -> Metric:
    scorer: Any = None

    def the_scorer() -> Any:
        nonlocal scorer
        if scorer is None:
            import sacrebleu

            scorer = getattr(sacrebleu, kind)()
        return scorer

    def statistics(rows: Sequence[Answered]) -> np.ndarray:
        most = max((len(row.references) for row in rows), default=1)
        # Pad rows that have fewer references with None.
        columns = [[row.references[i] if i < len(row.references) else None for row in rows] for i in range(most)]
        texts = [row.text.strip() for row in rows]
        return np.array(the_scorer()._extract_corpus_statistics(texts, columns), np.float64)

    def value(total: np.ndarray) -> float:
        return float(the_scorer()._compute_score_from_stats([int(number) for number in total]).score)

    return Metric(name, higher_is_better, statistics, value, 100.0)


METRICS = {
    metric.name: metric
    for metric in (
        Metric("exact_match", True, _mean_of(_exact_match), _ratio, 1.0),
        Metric("token_f1", True, _mean_of(_best_f1), _ratio, 1.0),
        _sacrebleu("bleu", True, "BLEU"),
        _sacrebleu("chrf", True, "CHRF"),
        Metric("perplexity", False, _reference_nats, _perplexity),
        Metric("latency", False, _mean_of(lambda row: row.total_seconds), _ratio, unit="s"),
    )
}
FROM_SACREBLEU = ("bleu", "chrf")
# Longest n-gram that BLEU counts. If the references are shorter, BLEU is 0 whatever the answers are.
BLEU_WORDS = 4


def choose_metrics(
    names: Sequence[str] | None, say: Callable[[str], None], references: Sequence[Sequence[str]] = ()
) -> list[Metric]:
    """Choose the metrics with these names; if none is given, all that are available and meaningful for the references.

    Args:
        say: called with a line for each metric that is left out.
        references: references of each row; empty if unknown.

    Raises:
        ConfigError: a name is unknown, or its package is not installed.
    """
    has_sacrebleu = importlib.util.find_spec("sacrebleu") is not None
    if names is None:
        if not has_sacrebleu:
            say("bleu and chrf are left out: they need the package sacrebleu (pip install sacrebleu)")
        left_out = set() if has_sacrebleu else set(FROM_SACREBLEU)
        if has_sacrebleu and references and _are_short(references):
            say(
                f"bleu is left out: most references have fewer than {BLEU_WORDS} words; to have it, name the metrics: "
                "--evaluate.metrics"
            )
            left_out.add("bleu")
        return [metric for name, metric in METRICS.items() if name not in left_out]
    for name in names:
        if name not in METRICS:
            hint = did_you_mean(name, METRICS) or f"known: {', '.join(METRICS)}"
            raise ConfigError(f"evaluate.metrics: there is no metric '{name}'", hint)
        if name in FROM_SACREBLEU and not has_sacrebleu:
            raise ConfigError(f"the metric {name} needs the package sacrebleu", "pip install sacrebleu")
    return [METRICS[name] for name in dict.fromkeys(names)]


def _are_short(references: Sequence[Sequence[str]]) -> bool:
    """Whether more than half of the rows have only references shorter than BLEU's longest n-gram."""
    long = sum(any(len(text.split()) >= BLEU_WORDS for text in texts) for texts in references)
    return 2 * long < len(references)
