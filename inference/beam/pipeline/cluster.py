"""The interface to an engine without graphs of its own, such as Ray or Spark.

`inference.ray.cluster` and `inference.spark.cluster` implement it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol


class Cluster(Protocol):
    """Calls functions on the workers of an engine, and retries calls whose worker died."""

    name: str

    def connected(self) -> AbstractContextManager[None]:
        """Connect to the engine, or start it on this machine.

        Raises:
            InferenceError: there is no engine at that address.
        """

    @property
    def slots(self) -> int:
        """Number of calls that can run at the same time, once connected."""

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        """Call a function with each item, on any worker. Yield the results in any order, one per item.

        Raises:
            Exception: the function's own error, whose message is included, or a worker died too often.
        """
