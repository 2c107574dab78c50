"""Server metrics in Prometheus' format, under vLLM's names if they have the same meaning.

Knows prometheus_client; counts requests and responses, and reads the rest from the engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from inference.engine.request import Request
from inference.serve.limits import Admission

if TYPE_CHECKING:
    from inference.generation.model import GenerativeModel

SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
TOKENS = tuple(base * 10**power for power in range(6) for base in (1, 2, 5))
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Figures:
    """Collects the metrics of a server.

    Args:
        model_name: label of all metrics.
    """

    def __init__(self, model_name: str, model: GenerativeModel, admission: Admission):
        from prometheus_client import CollectorRegistry, Counter, Histogram

        self._registry = CollectorRegistry()
        self._registry.register(_EngineFigures(model_name, model, admission))
        label = ("model_name",)

        def histogram(name: str, about: str, buckets: tuple[float, ...]) -> Any:
            made = Histogram(f"vllm:{name}", about, label, registry=self._registry, buckets=buckets)
            return made.labels(model_name)

        self._success = Counter(
            "vllm:request_success", "Finished answers.", (*label, "finished_reason"), registry=self._registry
        )
        self._name = model_name
        self._http = Counter(
            "http_requests", "Responses by path and status.", ("path", "status"), registry=self._registry
        )
        self._ttft = histogram("time_to_first_token_seconds", "From arrival to the first token.", SECONDS)
        self._tpot = histogram(
            "request_time_per_output_token_seconds", "Mean time per token after the first.", TOKEN_SECONDS
        )
        self._total = histogram("e2e_request_latency_seconds", "From arrival to the last token.", SECONDS)
        self._prompt = histogram("request_prompt_tokens", "Tokens of the prompt.", TOKENS)
        self._answer = histogram("request_generation_tokens", "Tokens of the answer.", TOKENS)

    def finished(self, request: Request) -> None:
        """Counts a finished row."""
        timing, count = request.timing, len(request.output_ids)
        if request.finish_reason is not None:
            self._success.labels(self._name, request.finish_reason.value).inc()
        self._prompt.observe(request.num_prompt_tokens)
        self._answer.observe(count)
        if timing.ttft is not None and timing.total is not None:
            self._ttft.observe(timing.ttft)
            self._total.observe(timing.total)
            if count > 1:
                self._tpot.observe((timing.total - timing.ttft) / (count - 1))

    def responded(self, path: str, status: int) -> None:
        """Counts a response."""
        self._http.labels(path, str(status)).inc()

    def text(self) -> bytes:
        """Returns all metrics in Prometheus' text format."""
        from prometheus_client import generate_latest

        return generate_latest(self._registry)


class _EngineFigures:
    """Metrics read from the engine on each scrape."""

    def __init__(self, model_name: str, model: GenerativeModel, admission: Admission):
        self._name, self._model, self._admission = model_name, model, admission

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        engine, done = self._model.background.engine, self._model.metrics
        running, waiting, kv_use = (engine.num_running, engine.num_waiting, engine.kv_use) if engine else (0, 0, 0.0)
        gauges: Mapping[str, tuple[str, float]] = {
            "vllm:num_requests_running": ("Rows in the running batch.", running),
            "vllm:num_requests_waiting": ("Rows that wait for a place in it.", waiting),
            "vllm:kv_cache_usage_perc": ("Share of the KV cache in use, 0 to 1.", kv_use),
        }
        counters: Mapping[str, tuple[str, float]] = {
            "vllm:prompt_tokens": ("Prompt tokens of finished rows.", done.prompt_tokens),
            "vllm:generation_tokens": ("Generated tokens of finished rows.", done.completion_tokens),
            "vllm:prefix_cache_queries": ("Prompt tokens looked up in the prefix cache.", done.prompt_tokens),
            "vllm:prefix_cache_hits": ("Prompt tokens that were in it.", done.reused_tokens),
            "vllm:num_preemptions": ("Times that a row gave its blocks to an older one.", done.preemptions),
            "requests_refused": ("Requests that got status 429.", self._admission.refused),
        }
        for name, (about, value) in gauges.items():
            gauge = GaugeMetricFamily(name, about, labels=["model_name"])
            gauge.add_metric([self._name], value)
            yield gauge
        for name, (about, value) in counters.items():
            counter = CounterMetricFamily(name, about, labels=["model_name"])
            counter.add_metric([self._name], value)
            yield counter
