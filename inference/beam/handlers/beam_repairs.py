"""Patches for faults in Beam's own RunInference, applied when our handler is imported, and the versions that need each.

A pipeline imports the handler before it is built, and a worker before it loads a model. An unlisted version is
left alone: it may have fixed the fault, or moved the code that a patch replaces.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass

import apache_beam as beam
from apache_beam.ml.inference import base

from inference.beam.handlers.batching import BatchElements
from inference.engine.metrics import peak_memory

Version = tuple[int, int]


@dataclass(frozen=True)
class Repair:
    """One fault of Beam.

    Args:
        fault: description of the fault.
        first: first version known to have the fault.
        last: last version known to have it.
        make: replaces the faulty part.
    """

    fault: str
    first: Version
    last: Version
    make: Callable[[], None]


class _Looks(threading.local):
    """Per thread, in bytes: the last measurement of the process's memory, and the model loaded since."""

    last = 0
    loaded: int | None = None


_looks = _Looks()


def note_loaded(num_bytes: int) -> None:
    """Record the size of a model that this thread has just loaded."""
    _looks.loaded = num_bytes


def process_memory() -> int:
    """Memory of this process, bytes. After a load, return the last value plus the size of the model."""
    _looks.last = peak_memory() if _looks.loaded is None else _looks.last + _looks.loaded
    _looks.loaded = None
    return _looks.last


def _batch_by_weight_and_length() -> None:
    beam.BatchElements = BatchElements


def _measure_memory() -> None:
    base._get_current_process_memory_in_bytes = process_memory


REPAIRS = (
    Repair(
        "BatchElements raises TypeError for max_batch_weight, and ignores length buckets without a duration",
        (2, 72),
        (2, 77),
        _batch_by_weight_and_length,
    ),
    Repair(
        "model_byte_size is the difference of two looks at the process's memory, and 0 without torch",
        (2, 72),
        (2, 77),
        _measure_memory,
    ),
)


def apply(version: str = beam.__version__) -> list[Repair]:
    """Apply the patches that a version of Beam needs, and return them. Further calls change nothing."""
    found = re.match(r"(\d+)\.(\d+)", version)
    own = (int(found[1]), int(found[2])) if found else (0, 0)
    needed = [repair for repair in REPAIRS if repair.first <= own <= repair.last]
    for repair in needed:
        repair.make()
    return needed
