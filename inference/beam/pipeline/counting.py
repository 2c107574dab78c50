"""Counts of rows: Beam's metrics if Beam runs, and a counter of the caller on other engines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from apache_beam.metrics import Metrics

NAMESPACE = "inference.pipeline"
_counter: ContextVar[Counter[str] | None] = ContextVar("counter", default=None)


def count(name: str, number: int = 1) -> None:
    """Add to a count."""
    Metrics.counter(NAMESPACE, name).inc(number)
    counter = _counter.get()
    if counter is not None:
        counter[name] += number


@contextmanager
def counting() -> Iterator[Counter[str]]:
    """Collect the counts that this thread adds while the context is open."""
    counter: Counter[str] = Counter()
    token = _counter.set(counter)
    try:
        yield counter
    finally:
        _counter.reset(token)
