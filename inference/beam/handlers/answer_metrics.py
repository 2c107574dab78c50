"""Metrics of a batch beyond Beam's own: tokens, times, prefix cache, failures. Never prints.

The names below begin with `<model name>_` once the model has been replaced:

- counters `prompt_tokens`, `completion_tokens`, `cached_tokens` (prompt tokens found in the prefix cache),
  `failed_rows`, `halved_batches`, `model_exchanges`, `model_rollbacks`
- distributions `time_to_first_token_micro_secs` (per row), `tokens_per_second` (per batch: new tokens / batch time)

A model that is replaced while batches run also updates Beam's `model_byte_size` and `load_model_latency_milli_secs`.
"""

from __future__ import annotations

from typing import Any

from apache_beam.metrics import Metrics

from inference.beam.serving.hot_swap import Event, Reply


class AnswerMetrics:
    """The metrics of one namespace. Beam collects them from the thread that processes a bundle."""

    def __init__(self, namespace: str):
        self._namespace = namespace

    def update(self, reply: Reply, seconds: float) -> None:
        """Count a batch that took `seconds`."""
        name = reply.name
        records = reply.answers.records
        answered = [record for record in records if record["error"] is None]
        new_tokens = _sum(answered, "completion_tokens")
        self._count(name, "prompt_tokens", _sum(answered, "prompt_tokens"))
        self._count(name, "completion_tokens", new_tokens)
        self._count(name, "cached_tokens", _sum(answered, "cached_tokens"))
        self._count(name, "failed_rows", len(records) - len(answered))
        self._count(name, "halved_batches", reply.answers.halved)
        for record in answered:
            if record["ttft_seconds"] is not None:
                self._distribute(name, "time_to_first_token_micro_secs", record["ttft_seconds"] * 1e6)
        if answered:
            self._distribute(name, "tokens_per_second", new_tokens / max(seconds, 1e-6))
        for event in reply.events:
            self._exchanged(event)

    def _exchanged(self, event: Event) -> None:
        if event.refused is not None:
            self._count(event.name, "model_rollbacks", 1)
            return
        self._count(event.name, "model_exchanges", 1)
        if event.num_bytes:
            self._distribute(event.name, "model_byte_size", event.num_bytes)
            self._distribute(event.name, "load_model_latency_milli_secs", event.load_seconds * 1e3)

    def _count(self, name: str, metric: str, value: int) -> None:
        if value:
            Metrics.counter(self._namespace, prefixed(name, metric)).inc(value)

    def _distribute(self, name: str, metric: str, value: float) -> None:
        Metrics.distribution(self._namespace, prefixed(name, metric)).update(round(value))


def prefixed(name: str, metric: str) -> str:
    """A metric's name with the model's name before it, as Beam writes it."""
    return f"{name}_{metric}" if name else metric


def _sum(records: list[dict[str, Any]], key: str) -> int:
    return sum(record[key] for record in records)
