"""`RunInference` with per-row error handling and with model updates on every runner.

Knows pipelines; the handler answers the batches.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.ml.inference import base
from apache_beam.ml.inference.base import ModelHandler, ModelMetadata, PredictionResult, RunInferenceDLQ
from apache_beam.pvalue import AsIter, AsSingleton, TaggedOutput

from inference.beam.handlers.mindspore import MindSporeModelHandler
from inference.beam.handlers.model_watch import Pattern, Poll, Watch
from inference.errors import ConfigError, InferenceError

FAILED = "failed"
INTERVAL = 60.0


class FailedRowError(InferenceError):
    """The reason why a row has no answer."""


class RunInference(base.RunInference):
    """Beam's RunInference for any model handler, with these differences:

    - `with_exception_handling()`: each row that cannot be answered becomes its own dead letter, in Beam's form: a batch
      of one, and (type, message, traceback) of its error. Without it, the row's result holds the error.
    - A model is replaced on every runner, in batch and streaming: among the values of `model_metadata_pcoll` in an
      element's window, the one with the latest timestamp applies; the workers themselves check `watch_model_pattern`.
      With our handler the new model is loaded beside the old one and validated. If it fails, it is rejected, with the
      metric `model_rollbacks` and a line in the log.
    - A handler that returns fewer or more results than rows is an error.
    - `inference_args` are copied.

    Args:
        model_handler: ours, one of Beam's, or a wrapper such as KeyedModelHandler.
        clock: provides `time_ns()`.
        inference_args: for our handlers, generation settings for all rows.
        metrics_namespace: namespace of the metrics; the handler's by default.
        model_metadata_pcoll: PCollection of ModelMetadata, or of lists of KeyModelPathMapping.
        watch_model_pattern: glob pattern of model files; the newest file is used.
        interval: seconds between two checks of the pattern.
        stop_timestamp: seconds since the epoch after which the pattern is no longer checked.
        model_identifier: steps with the same identifier share a model that is shared across processes.
        monitoring_transform: receives all results of the model.

    Raises:
        ConfigError: two arguments exclude each other.
        ModelNotFoundError: the pattern matches nothing (when the transform is applied).
    """

    def __init__(
        self,
        model_handler: ModelHandler,
        clock: Any = time,
        inference_args: Mapping[str, Any] | None = None,
        metrics_namespace: str | None = None,
        *,
        model_metadata_pcoll: beam.PCollection | None = None,
        watch_model_pattern: str | None = None,
        interval: float = INTERVAL,
        stop_timestamp: float | None = None,
        model_identifier: str | None = None,
        monitoring_transform: beam.PTransform | None = None,
    ):
        super().__init__(
            model_handler,
            clock,
            copy.deepcopy(inference_args),
            metrics_namespace,
            model_metadata_pcoll=model_metadata_pcoll,
            model_identifier=model_identifier,
        )
        self._monitoring_transform = monitoring_transform
        self._pattern: Pattern | None = None
        self._interval = interval
        if watch_model_pattern is not None:
            if model_metadata_pcoll is not None:
                raise ConfigError("both model_metadata_pcoll and watch_model_pattern are given", "give one of them")
            self._pattern = Pattern(watch_model_pattern, None if stop_timestamp is None else float(stop_timestamp))

    def expand(self, pcoll: beam.PCollection) -> Any:
        handler = self._model_handler
        handler.validate_inference_args(self._inference_args)
        if self._pattern is not None:
            self._pattern.check()
        rows, bad_before = self._apply_fns(pcoll, handler.get_preprocess_fns(), "BeamML_RunInference_Preprocess")
        batches = rows
        if not handler.should_skip_batching():
            batches = rows | beam.BatchElements(**handler.batch_elements_kwargs())
        results, bad_batches = self._answered(batches)
        if self._monitoring_transform is not None:
            _ = results | "BeamML_RunInference_MonitoringOutlet" >> self._monitoring_transform
        bad_rows = None
        if self._with_exception_handling:
            results, bad_rows = self._split(results)
        results, bad_after = self._apply_fns(results, handler.get_postprocess_fns(), "BeamML_RunInference_Postprocess")
        if not self._with_exception_handling:
            return results
        failed = (bad_batches, bad_rows) | "BeamML_RunInference_Failed" >> beam.Flatten()
        return results, RunInferenceDLQ(failed, bad_before, bad_after)

    def _answered(self, batches: beam.PCollection) -> tuple[beam.PCollection, beam.PCollection | None]:
        """Run inference. Returns the results and, with exception handling, the batches that raised."""
        handler, updates = self._model_handler, self._model_metadata_pcoll
        at_runtime = updates is not None or self._timeout is not None
        answer = _Answer(handler, self._clock, self._metrics_namespace, at_runtime, self._model_tag)
        answer.watch_for(self._pattern, self._interval)
        sides = [] if updates is None else [AsIter(updates | "BeamML_RunInference_Times" >> beam.Map(_with_time))]
        step = beam.ParDo(answer, self._inference_args, *sides).with_resource_hints(**handler.get_resource_hints())
        if not self._with_exception_handling:
            return batches | "BeamML_RunInference" >> step, None
        results, bad = batches | "BeamML_RunInference" >> step.with_exception_handling(
            exc_class=self._exc_class,
            use_subprocess=self._use_subprocess,
            threshold=self._threshold,
            timeout=self._timeout,
            on_failure_callback=self._on_failure(),
        )
        return results, bad

    def _on_failure(self) -> Any:
        """The callback for a batch that raised: after a timeout it triggers a model reload, as Beam does."""
        handler, tag, timeout = self._model_handler, self._model_tag, self._timeout
        if timeout is None or not handler.should_garbage_collect_on_timeout():
            return None
        shared = handler.share_model_across_processes()

        def forget_model(error: Exception, element: Any) -> None:
            if type(error) is TimeoutError:
                base.load_model_status(tag, shared).try_mark_current_model_invalid(timeout)

        return forget_model

    def _split(self, results: beam.PCollection) -> tuple[beam.PCollection, beam.PCollection]:
        """Split results into answers and dead letters."""
        apart = results | "BeamML_RunInference_Split" >> beam.ParDo(_Split()).with_outputs(FAILED, main="answered")
        if self._threshold < 1:
            bad = AsSingleton(apart[FAILED] | "BeamML_RunInference_CountFailed" >> beam.combiners.Count.Globally())
            rows = AsSingleton(results | "BeamML_RunInference_CountRows" >> beam.combiners.Count.Globally())
            start = results.pipeline | "BeamML_RunInference_AtTheEnd" >> beam.Create([self._threshold])
            _ = start | "BeamML_RunInference_Threshold" >> beam.Map(_check_threshold, bad, rows)
        return apart["answered"], apart[FAILED]


class _Answer(base._RunInferenceDoFn):
    """Beam's DoFn, which here also checks the number of results, and checks for new models between batches."""

    _pattern: Pattern | None = None
    _poll: Poll | None = None
    _named = ""
    _metrics_collector: Any = None

    def watch_for(self, pattern: Pattern | None, interval: float) -> None:
        """Watch for new models. Called before the pipeline runs."""
        self._pattern, self._interval = pattern, interval

    def setup(self) -> None:
        ours = our_handler(self._model_handler)
        watch = Watch(self._pattern, ours) if self._pattern is not None and ours is not None else None
        begun_with = watch() if watch else None
        if ours is not None and begun_with is not None:
            ours.begin_with(begun_with)
        if self._pattern is not None and watch is None:
            self._poll = Poll(self._pattern, self._interval)
            self._load_model_at_runtime = True
        super().setup()
        if watch:
            for model in self._model.all_models():
                model.watch(watch, self._interval, begun_with)
            self._take_name(has_begun=False)

    def process(
        self, batch: Sequence[Any], inference_args: Mapping[str, Any] | None, updates: Iterable[Any] = ()
    ) -> Any:
        update = self._poll() if self._poll else _latest(updates)
        ours = our_handler(self._model_handler)
        if ours is not None and isinstance(update, ModelMetadata):
            self._exchange(ours, update)
            update = None
        elif isinstance(update, list) and self._model is None:
            # Otherwise Beam would answer the first batch with models that are about to be replaced.
            self.update_model(None)
        if self._pattern is not None:
            self._take_name()
        return super().process(batch, copy.deepcopy(inference_args), update)

    def _exchange(self, handler: MindSporeModelHandler, update: ModelMetadata) -> None:
        candidate = handler.candidate(update.model_id, update.model_name)
        has_begun = self._model is not None
        if not has_begun:
            handler.begin_with(candidate)
            self.update_model(None)
        for model in self._model.all_models():
            model.exchange(candidate)
        self._take_name(has_begun)

    def get_metrics_collector(self, prefix: str = "") -> Any:
        if super().get_metrics_collector(prefix) is None:
            return None
        return _Collector(self._metrics_namespace or self._model_handler.get_metrics_namespace(), prefix)

    def _take_name(self, has_begun: bool = True) -> None:
        """Count metrics under the name of the current model.

        Args:
            has_begun: whether another model was loaded before; if not, the measured load is this model's.
        """
        if our_handler(self._model_handler) is None or self._model is None:
            return
        name = self._model.all_models()[0].name()
        if name != self._named:
            self._named = name
            before, self._metrics_collector = self._metrics_collector, self.get_metrics_collector(prefix=name)
            if before and self._metrics_collector:
                if has_begun:
                    before.update_metrics_with_cache()
                else:
                    self._metrics_collector.loads = before.loads

    def _run_inference(self, batch: Sequence[Any], inference_args: Mapping[str, Any] | None) -> list[Any]:
        results: list[Any] = super()._run_inference(batch, inference_args)
        if len(results) != len(batch):
            if self._metrics_collector:
                self._metrics_collector.failed_batches_counter.inc()
            raise InferenceError(
                f"{type(self._model_handler).__name__} returned {len(results)} results for a batch of {len(batch)}",
                "its run_inference must return one per row, in order",
            )
        return results


class _Collector(base._MetricsCollector):
    """Beam's metrics collector, which here counts every load, even if several happen within one bundle.

    Attributes:
        loads: loads not counted yet: (milliseconds, bytes).
    """

    def __init__(self, namespace: str, prefix: str = ""):
        super().__init__(namespace, prefix)
        self.loads: list[tuple[int, int]] = []

    def cache_load_model_metrics(self, load_model_latency_ms: int, model_byte_size: int) -> None:
        self.loads.append((load_model_latency_ms, model_byte_size))

    def update_metrics_with_cache(self) -> None:
        while self.loads:
            self.update_load_model_metrics(*self.loads.pop())


class _Split(beam.DoFn):
    """Separates results with an answer from those whose record holds an error."""

    def process(self, result: Any) -> Iterator[Any]:
        keyed = isinstance(result, tuple) and not isinstance(result, PredictionResult)
        key, prediction = result if keyed and len(result) == 2 else (None, result)
        error = _error_of(prediction)
        if error is None:
            yield result
            return
        row = (key, prediction.example) if keyed else prediction.example
        reason = FailedRowError(f"{error['type']}: {error['message']}")
        yield TaggedOutput(FAILED, ([row], (FailedRowError, repr(reason), [])))


def our_handler(handler: ModelHandler) -> MindSporeModelHandler | None:
    """Our handler, unwrapped from Beam's wrappers; None if there are several, it is not ours, or it has no config."""
    while handler is not None and not isinstance(handler, MindSporeModelHandler):
        handler = getattr(handler, "_unkeyed", None) or getattr(handler, "_base", None)
    return handler if handler is not None and handler.has_model else None


def _error_of(prediction: Any) -> Mapping[str, Any] | None:
    record = prediction.inference if isinstance(prediction, PredictionResult) else None
    return record.get("error") if isinstance(record, Mapping) and "finish_reason" in record else None


def _with_time(update: Any, timestamp: Any = beam.DoFn.TimestampParam) -> tuple[int, Any]:
    return timestamp.micros, update


def _latest(updates: Iterable[tuple[int, Any]]) -> Any:
    """The update with the latest timestamp (the last of equals), or None."""
    latest = None
    for update in updates:
        if latest is None or update[0] >= latest[0]:
            latest = update
    return latest[1] if latest else None


def _check_threshold(threshold: float, bad: int, rows: int) -> None:
    if rows and bad / rows > threshold:
        raise InferenceError(f"{bad} of {rows} rows failed, more than the threshold of {threshold}")
