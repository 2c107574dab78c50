"""Carries items from the engine's thread to an event loop: wakes the loop once per step, not once per row.

Knows threads and loops; knows nothing about the items.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from typing import Generic, Protocol, TypeVar

Item = TypeVar("Item")
ItemOf = TypeVar("ItemOf", contravariant=True)


class Receiver(Protocol[ItemOf]):
    """Receives items in the loop's thread."""

    def take(self, item: ItemOf) -> None: ...


class Inbox(Generic[Item]):
    """Carries items to their receivers in the thread of `loop`."""

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self._loop = loop
        self._items: deque[tuple[Receiver[Item], Item]] = deque()
        self._lock = threading.Lock()
        self._scheduled = False

    def put(self, receiver: Receiver[Item], item: Item) -> None:
        """Queues an item; may be called from any thread.

        Raises:
            RuntimeError: the loop is closed.
        """
        with self._lock:
            self._items.append((receiver, item))
            if self._scheduled:
                return
            self._scheduled = True
        self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        with self._lock:
            self._scheduled = False
            items, self._items = self._items, deque()
        for receiver, item in items:
            receiver.take(item)
