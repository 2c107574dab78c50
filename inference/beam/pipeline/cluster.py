"""What a pipeline needs of an engine that has no graphs of its own, such as Ray or Spark.

Knows the interface; `inference.ray.cluster` and `inference.spark.cluster` are two of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol


class Cluster(Protocol):
    """Calls functions on the workers of an engine, and calls them again if a worker dies."""

    name: str

    def connected(self) -> AbstractContextManager[None]:
        """Connect to the engine, or start it on this machine.

        Raises:
            InferenceError: there is no engine at that address.
        """

    @property
    def slots(self) -> int:
        """How many calls run at the same time, once connected."""

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        """Call a function with each item, on any worker. Yield the results in any order, one per item.

        Raises:
            Exception: what the function raised, or a worker died too often. The message holds that of the function.
        """
