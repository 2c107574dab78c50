"""Two repairs of Beam's own RunInference, so that it does with our handler what its arguments and metrics say.

Made when the handler is imported, which is before a pipeline is built and, in a worker, before a model is loaded:

- `max_batch_weight` and length buckets reach a BatchElements that knows them; Beam's raises TypeError for the one and
  passes over the other. Without these arguments it is Beam's own that works.
- `model_byte_size` is the difference of two looks at the process's memory, and 0 where torch is not installed. The
  second look is the first plus what the handler has loaded in between.
"""

from __future__ import annotations

import threading

import apache_beam as beam
from apache_beam.ml.inference import base

from inference.beam.handlers.batching import BatchElements
from inference.engine.metrics import peak_memory


class _Looks(threading.local):
    """What this thread saw last, and has loaded since; bytes."""

    last = 0
    loaded: int | None = None


_looks = _Looks()


def note_loaded(num_bytes: int) -> None:
    """Says what a model takes that this thread has just loaded."""
    _looks.loaded = num_bytes


def process_memory() -> int:
    """Memory of this process, bytes."""
    _looks.last = peak_memory() if _looks.loaded is None else _looks.last + _looks.loaded
    _looks.loaded = None
    return _looks.last


def apply() -> None:
    """Makes the repairs; once is enough."""
    beam.BatchElements = BatchElements
    base._get_current_process_memory_in_bytes = process_memory
