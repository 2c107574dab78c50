"""One running engine for all callers: a thread that runs steps while there are rows.

Callers in any thread or event loop submit rows and receive the events of each step; their rows run together. Knows
requests; knows nothing about the meaning of tokens, which each row handles itself.
"""

from __future__ import annotations

import atexit
import os
import queue
import threading
import weakref
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterable
from concurrent.futures import Future, InvalidStateError
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any, Generic, TypeVar

from inference.engine.engine import BaseEngine, Event, Row
from inference.engine.request import FinishReason, Request
from inference.errors import InferenceError
from inference.parallel import heartbeat

Result = TypeVar("Result")


def check_process(process: int) -> None:
    """Refuses to run in a fork: MindSpore's threads and locks belong to the parent, so waiting would never end.

    Args:
        process: the id of the process that loaded a model.

    Raises:
        InferenceError: this is another process.
    """
    if os.getpid() != process:
        raise InferenceError(
            f"process {os.getpid()} is a fork of process {process}, which has loaded a model: "
            "MindSpore cannot continue here",
            "start processes with multiprocessing.get_context('spawn')",
        )


@dataclass(frozen=True)
class Delivery(Generic[Event]):
    """The result of a step for a row: an event, or the error that ended the row; `last` if nothing follows."""

    row: Row[Event]
    event: Event | None
    last: bool
    error: BaseException | None = None

    @property
    def request(self) -> Request:
        return self.row.request

    def unwrap(self) -> Event:
        """Returns the event.

        Raises:
            BaseException: the error that ended the row.
        """
        if self.error is not None:
            raise self.error
        assert self.event is not None
        return self.event


@dataclass(frozen=True)
class _Work:
    """Work other than generating rows: a generator that pauses between its parts, and the future for its result."""

    parts: Generator[None, None, Any]
    future: Future[Any]

    def advance(self) -> bool:
        """Runs one part; returns whether the work is over."""
        if self.future.cancelled():
            self.parts.close()
            return True
        try:
            next(self.parts)
            return False
        except StopIteration as end:
            result = end.value
            self._settle(lambda: self.future.set_result(result))
        except BaseException as error:
            failure = error
            self._settle(lambda: self.future.set_exception(failure))
        return True

    def fail(self, error: BaseException) -> None:
        """Ends the work with an error."""
        self.parts.close()
        self._settle(lambda: self.future.set_exception(error))

    def _settle(self, settle: Callable[[], None]) -> None:
        with suppress(InvalidStateError):  # it was cancelled in the meantime
            settle()


@dataclass(frozen=True)
class _Entry:
    row: Row[Any]
    deliver: Callable[[Delivery[Any]], None]
    every_token: bool


class BackgroundEngine:
    """Runs rows in its own thread, which ends when there are none.

    Args:
        open_engine: opens an engine for exclusive use.
    """

    def __init__(self, open_engine: Callable[[], AbstractContextManager[BaseEngine]]):
        self._open = open_engine
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._entries: dict[Request, _Entry] = {}
        self._entered: list[Row[Any]] = []
        self._left: list[Request] = []
        self._works: deque[_Work] = deque()
        self._thread: threading.Thread | None = None
        self._engine: BaseEngine | None = None

    @property
    def engine(self) -> BaseEngine | None:
        """The engine that currently runs rows, for its metrics; None if there are no rows."""
        return self._engine

    def submit(self, row: Row[Event], deliver: Callable[[Delivery[Event]], None], every_token: bool = True) -> None:
        """Adds a row to the running batch.

        Args:
            row: a new row; its `advance` is called in the engine's thread.
            deliver: called in the engine's thread; a row is cancelled if its `deliver` raises RuntimeError.
            every_token: deliver an event for each step that yields tokens; otherwise only for the last one.

        Raises:
            InferenceError: this process is a fork of the engine's.
        """
        check_process(self._process)
        with self._lock:
            self._entries[row.request] = _Entry(row, deliver, every_token)
            self._entered.append(row)
            self._start()

    def interleave(self, parts: Generator[None, None, Result]) -> Future[Result]:
        """Runs a generator in the engine's thread: one part after each step, so that rows do not wait long.

        Returns:
            Its result. Cancelling it closes the generator at its next pause.

        Raises:
            InferenceError: this process is a fork of the engine's.
        """
        check_process(self._process)
        work = _Work(parts, Future())
        with self._lock:
            self._works.append(work)
            self._start()
        return work.future

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
            _running().add(self)
            self._thread.start()

    def cancel(self, request: Request) -> None:
        """Cancels an unfinished row: its slot and its blocks are free after the current step."""
        with self._lock:
            if self._entries.pop(request, None) is not None:
                self._left.append(request)

    def close(self) -> None:
        """Cancels all rows and waits for the current step. Callers that wait for a row get an error."""
        with self._lock:
            thread, rows = self._thread, [entry.row for entry in self._entries.values()]
            self._left.extend(row.request for row in rows)
            works = list(self._works)
        for work in works:
            work.future.cancel()
        for row in rows:
            message = f"request {row.request.request_id} was let go of: the engine was closed"
            self._deliver(Delivery(row, None, True, InferenceError(message)))
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def stream(
        self, rows: Iterable[Row[Event]], most: int, every_token: bool = True
    ) -> Generator[Delivery[Event], None, None]:
        """Yields the deliveries of all rows as they arrive.

        `rows` is read only as needed, so that at most `most` rows are running, or finished but not yet consumed.
        Closing the iterator cancels the unfinished rows.
        """
        deliveries: queue.SimpleQueue[Delivery[Event]] = queue.SimpleQueue()
        source = iter(rows)
        open_rows: set[Request] = set()
        try:
            while True:
                for row in islice(source, most - len(open_rows)):
                    open_rows.add(row.request)
                    self.submit(row, deliveries.put, every_token)
                if not open_rows:
                    return
                delivery = deliveries.get()
                if delivery.last:
                    open_rows.discard(delivery.request)
                yield delivery
        finally:
            for request in open_rows:
                self.cancel(request)

    async def stream_async(self, row: Row[Event]) -> AsyncGenerator[Event, None]:
        """Yields one row's events in an event loop. Closing the iterator or cancelling its task cancels the row."""
        import asyncio

        loop = asyncio.get_running_loop()
        deliveries: asyncio.Queue[Delivery[Event]] = asyncio.Queue()

        def deliver(delivery: Delivery[Event]) -> None:
            loop.call_soon_threadsafe(deliveries.put_nowait, delivery)

        self.submit(row, deliver)
        try:
            last = False
            while not last:
                delivery = await deliveries.get()
                last = delivery.last
                yield delivery.unwrap()
        finally:
            self.cancel(row.request)

    def _run(self) -> None:
        """Runs steps until no row is left. This is the body of the thread."""
        try:
            with self._open() as engine:
                self._engine = engine
                while self._take_changes(engine):
                    if engine.busy:
                        for request in engine.step():
                            self._advance(engine, request)
                    if self._works and self._works[0].advance():
                        self._works.popleft()
        except BaseException as error:
            with self._lock:
                self._engine = None
                rows = [entry.row for entry in self._entries.values()]
                self._entered, self._left, self._thread = [], [], None
                works, self._works = self._works, deque()
            for row in rows:
                self._deliver(Delivery(row, None, True, error))
            for work in works:
                work.fail(error)

    def _take_changes(self, engine: BaseEngine) -> bool:
        """Adds new rows and removes cancelled ones; returns False, which ends the thread, if no row is left."""
        with self._lock:
            entered, self._entered = self._entered, []
            left, self._left = self._left, []
            if not entered and not engine.busy and not self._works:
                self._thread = self._engine = None
                heartbeat.idle()
                return False
        for row in entered:
            try:
                engine.add(row.request)
            except InferenceError as error:
                self._deliver(Delivery(row, None, True, error))
        for request in left:
            engine.finish(request, FinishReason.CANCELLED)
        return True

    def _advance(self, engine: BaseEngine, request: Request) -> None:
        entry = self._entries.get(request)
        if entry is None:
            return
        event = engine.advance(entry.row)
        if request.finished or entry.every_token:
            self._deliver(Delivery(entry.row, event, request.finished, request.error))

    def _deliver(self, delivery: Delivery[Any]) -> None:
        with self._lock:
            entry = self._entries.get(delivery.request)
            if entry is not None and delivery.last:
                del self._entries[delivery.request]
        if entry is None:
            return
        try:
            entry.deliver(delivery)
        except RuntimeError:
            # The event loop that waited for the row is closed.
            self.cancel(delivery.request)


@cache
def _running() -> weakref.WeakSet[BackgroundEngine]:
    """Returns the engines that may have a thread. The first call registers a hook that stops them at exit."""
    engines: weakref.WeakSet[BackgroundEngine] = weakref.WeakSet()

    def stop() -> None:
        for engine in engines:
            engine.close()

    atexit.register(stop)
    return engines
