"""Batches limited by rows, weight and length.

Beam's BatchElements has no weight limit, and uses lengths only if a batch may wait for rows of later bundles.

Knows elements and their sizes; knows nothing about models.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
from apache_beam import coders
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import (
    BagStateSpec,
    CombiningValueStateSpec,
    TimerSpec,
    on_timer,
)
from apache_beam.utils.windowed_value import WindowedValue

from inference.errors import ConfigError

BOUNDARIES = (16, 32, 64, 128, 256, 512)
# Maximum number of open batches in a bundle; beyond it the heaviest is emitted.
MOST_OPEN = 64
Size = Callable[[Any], int]
_TheirBatchElements = beam.BatchElements


@dataclass(frozen=True)
class Limits:
    """The limits on which elements may share a batch.

    Args:
        most_weight: maximum total weight; a heavier row gets a batch of its own. None for no limit.
        weigh: returns the weight of an element.
        measure: returns the length of an element; None if lengths do not matter.
        boundaries: lengths at which buckets begin, in order.
    """

    most_weight: int | None = None
    weigh: Size | None = None
    measure: Size | None = None
    boundaries: Sequence[int] = BOUNDARIES

    def weight(self, element: Any) -> int:
        return self.weigh(element) if self.most_weight is not None and self.weigh else 0

    def bucket(self, element: Any) -> int:
        return bisect.bisect_right(self.boundaries, self.measure(element)) if self.measure else 0

    def too_heavy(self, weight: int) -> bool:
        return self.most_weight is not None and weight > self.most_weight


class BatchElements(_TheirBatchElements):  # type: ignore[misc,valid-type]
    """Beam's BatchElements with all its arguments, plus limits on weight and length buckets that always work.

    Args:
        max_batch_weight: maximum total weight of a batch; a heavier element gets a batch of its own.
        element_size_fn: returns the weight of an element. Without `max_batch_weight` it has Beam's meaning.
        length_fn: returns the length of an element; only elements of one bucket share a batch.
        bucket_boundaries: lengths at which buckets begin.

    Raises:
        ConfigError: the boundaries are not increasing positive numbers, or an argument is missing the one it requires.
    """

    def __init__(
        self,
        *args: Any,
        max_batch_weight: int | None = None,
        element_size_fn: Size | None = None,
        length_fn: Size | None = None,
        bucket_boundaries: Sequence[int] | None = None,
        **options: Any,
    ):
        if bucket_boundaries is not None and length_fn is None:
            raise ConfigError("bucket_boundaries requires length_fn to be set", "give both, or neither")
        boundaries = list(BOUNDARIES if bucket_boundaries is None else bucket_boundaries)
        if not boundaries or boundaries[0] <= 0 or boundaries != sorted(set(boundaries)):
            raise ConfigError(f"bucket_boundaries are {boundaries}", "give increasing positive numbers")
        if max_batch_weight is not None and (element_size_fn is None or max_batch_weight < 1):
            raise ConfigError(f"max_batch_weight is {max_batch_weight}", "give at least 1, and an element_size_fn")
        if max_batch_weight is None and element_size_fn is not None:
            options["element_size_fn"] = element_size_fn
        super().__init__(*args, **options)
        self._limits = None
        if max_batch_weight is not None or length_fn is not None:
            self._limits = Limits(max_batch_weight, element_size_fn, length_fn, boundaries)

    def expand(self, pcoll: beam.PCollection) -> beam.PCollection:
        if self._limits is None:
            return super().expand(pcoll)
        if self._max_batch_dur is None:
            return pcoll | "Batch" >> beam.ParDo(_OfOneBundle(self._batch_size_estimator, self._limits))
        batches = _AcrossBundles(self._batch_size_estimator, self._limits, self._max_batch_dur)
        return (
            pcoll
            | "Bucket" >> beam.Map(_with_bucket, self._limits).with_output_types(tuple[int, Any])
            | "Batch" >> beam.ParDo(batches)
        )


def _with_bucket(element: Any, limits: Limits) -> tuple[int, Any]:
    return limits.bucket(element), element


@dataclass
class _Batch:
    elements: list[Any] = field(default_factory=list)
    weight: int = 0


class _OfOneBundle(beam.DoFn):
    """Batches the elements of one bundle, separately for each window and bucket.

    Args:
        estimator: Beam's batch size estimator; it chooses the number of rows and keeps the metrics.
    """

    def __init__(self, estimator: Any, limits: Limits):
        self._estimator = estimator
        self._limits = limits

    def start_bundle(self) -> None:
        self._open: dict[Any, _Batch] = {}
        self._most_rows = self._estimator.next_batch_size()

    def process(self, element: Any, window: Any = beam.DoFn.WindowParam) -> Iterator[WindowedValue]:
        limits, place = self._limits, (window, self._limits.bucket(element))
        weight = limits.weight(element)
        batch = self._open.get(place)
        if batch is not None and (len(batch.elements) >= self._most_rows or limits.too_heavy(batch.weight + weight)):
            yield from self._emit(place)
        batch = self._open.setdefault(place, _Batch())
        batch.elements.append(element)
        batch.weight += weight
        if len(self._open) > MOST_OPEN:
            yield from self._emit(max(self._open, key=lambda key: self._open[key].weight))

    def finish_bundle(self) -> Iterator[WindowedValue]:
        for place in list(self._open):
            yield from self._emit(place)

    def _emit(self, place: Any) -> Iterator[WindowedValue]:
        elements, window = self._open.pop(place).elements, place[0]
        with self._estimator.record_time(len(elements)):
            yield WindowedValue(elements, window.max_timestamp(), (window,))
        self._most_rows = self._estimator.next_batch_size()


class _AcrossBundles(beam.DoFn):
    """Batches elements of several bundles, separately for each key (their bucket).

    Args:
        seconds: longest time that an element may wait for others.
    """

    ELEMENTS = BagStateSpec("elements", coders.PickleCoder())
    COUNT = CombiningValueStateSpec("count", combine_fn=sum)
    WEIGHT = CombiningValueStateSpec("weight", combine_fn=sum)
    WINDOW_END = TimerSpec("window_end", TimeDomain.WATERMARK)
    WAITED = TimerSpec("waited", TimeDomain.REAL_TIME)

    def __init__(self, estimator: Any, limits: Limits, seconds: float):
        self._estimator = estimator
        self._limits = limits
        self._seconds = seconds

    def start_bundle(self) -> None:
        self._most_rows = self._estimator.next_batch_size()

    def process(
        self,
        element: tuple[int, Any],
        window: Any = beam.DoFn.WindowParam,
        elements: Any = beam.DoFn.StateParam(ELEMENTS),  # noqa: B008
        count: Any = beam.DoFn.StateParam(COUNT),  # noqa: B008
        weight: Any = beam.DoFn.StateParam(WEIGHT),  # noqa: B008
        window_end: Any = beam.DoFn.TimerParam(WINDOW_END),  # noqa: B008
        waited: Any = beam.DoFn.TimerParam(WAITED),  # noqa: B008
    ) -> Iterator[list[Any]]:
        window_end.set(window.end)
        own = self._limits.weight(element[1])
        if count.read() and self._limits.too_heavy(weight.read() + own):
            yield from self._emit(elements, count, weight, waited)
        if not count.read():
            waited.set(time.time() + self._seconds)
        elements.add(element[1])
        count.add(1)
        weight.add(own)
        if count.read() >= self._most_rows:
            yield from self._emit(elements, count, weight, waited)

    @on_timer(WINDOW_END)
    def at_window_end(
        self,
        elements: Any = beam.DoFn.StateParam(ELEMENTS),  # noqa: B008
        count: Any = beam.DoFn.StateParam(COUNT),  # noqa: B008
        weight: Any = beam.DoFn.StateParam(WEIGHT),  # noqa: B008
        waited: Any = beam.DoFn.TimerParam(WAITED),  # noqa: B008
    ) -> Iterator[list[Any]]:
        yield from self._emit(elements, count, weight, waited)

    @on_timer(WAITED)
    def after_waiting(
        self,
        elements: Any = beam.DoFn.StateParam(ELEMENTS),  # noqa: B008
        count: Any = beam.DoFn.StateParam(COUNT),  # noqa: B008
        weight: Any = beam.DoFn.StateParam(WEIGHT),  # noqa: B008
        waited: Any = beam.DoFn.TimerParam(WAITED),  # noqa: B008
    ) -> Iterator[list[Any]]:
        yield from self._emit(elements, count, weight, waited)

    def _emit(self, elements: Any, count: Any, weight: Any, waited: Any) -> Iterator[list[Any]]:
        batch = list(elements.read())
        for state in (elements, count, weight):
            state.clear()
        waited.clear()
        if batch:
            with self._estimator.record_time(len(batch)):
                yield batch
            self._most_rows = self._estimator.next_batch_size()
