"""Data parallel: several copies (replicas) of a model used as one.

Rank 0 gives each row to the replica with the most room, and collects all answers. The leader of every other replica
answers the rows that it receives.

Messages from rank 0: `open` (load the model, with a KV cache for a number of positions), `rows`, `end`. From the
others: `ready`, `events`, `failed`, `figures`. Knows channels and engines; knows nothing about files or the ranks
of a replica.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from inference.config import GenerationConfig
from inference.engine.metrics import RunMetrics
from inference.engine.request import FinishReason, Request
from inference.errors import GenerationError, InferenceError, InputError
from inference.generation.replica_messages import RemoteRow, event_fields, key_of, row_fields, row_of
from inference.generation.text import EncodedPrompt, Failure, Load, TextEvent, TextGenerator
from inference.parallel import heartbeat
from inference.parallel.channel import Channel, Message, PeerLostError

OPEN, ROWS, END = "open", "rows", "end"
READY, EVENTS, FAILED, FIGURES = "ready", "events", "failed", "figures"
# Seconds that a replica collects tokens to send them together; it sends a complete answer at once.
TOGETHER = 0.02
# Seconds that rank 0 waits for events before it looks for new rows.
LOOK = 0.02
# Seconds that rank 0 waits for the metrics of replicas at the end.
FAREWELL = 5.0


@dataclass(eq=False)
class Remote:
    """Another replica, as rank 0 sees it."""

    channel: Channel
    capacity: int = 0
    """The most rows that it can use at a time; 0 until it is ready."""
    rows: dict[tuple[int, int], RemoteRow] = field(default_factory=dict)
    load: Load = field(default_factory=Load)
    metrics: RunMetrics = field(default_factory=RunMetrics)
    lost: bool = False

    @property
    def fullness(self) -> float:
        return len(self.rows) / self.capacity


class Replicas:
    """All replicas of a model, used like one `TextGenerator`.

    Args:
        local: the generator of rank 0's own replica.
        channels: to the leaders of the other replicas, which have already been sent `open`.
    """

    def __init__(self, local: TextGenerator, channels: Iterable[Channel]):
        self._local = local
        self._inbox: queue.SimpleQueue[tuple[Remote, Message | PeerLostError]] = queue.SimpleQueue()
        self.remotes = [Remote(channel) for channel in channels]
        for remote in self.remotes:
            remote.capacity = remote.channel.expect(READY).fields["capacity"]
            _read(remote.channel, partial(self._put, remote))

    @property
    def has_room(self) -> bool:
        """Whether more prompts can be used now."""
        return self._local.has_room or any(len(remote.rows) < remote.capacity for remote in self.remotes)

    @property
    def busy(self) -> bool:
        """Whether any answer is not finished."""
        return self._local.busy or any(remote.rows for remote in self.remotes)

    @property
    def load(self) -> Load:
        """The load of all replicas; `kv_use` is the mean of their KV caches."""
        loads = [self._local.load, *(remote.load for remote in self.remotes)]
        share = sum(load.kv_use for load in loads) / len(loads)
        return Load(sum(load.running for load in loads), sum(load.waiting for load in loads), share)

    def add(self, source: EncodedPrompt) -> None:
        """Gives a prompt to the replica with the most room; rank 0's own goes first in a tie.

        Raises:
            InputError: rank 0's engine cannot take it; for another replica `step` returns a `Failure`.
        """
        remote = min(self.remotes, key=lambda remote: remote.fullness)
        # A constraint is compiled on rank 0 and cannot be sent.
        if source.constraint is not None or self._local.num_rows / self._local.capacity <= remote.fullness:
            self._local.add(source)
            return
        remote.rows[source.row, source.sample] = RemoteRow.begin(source, self._local.engine.context_length)
        remote.channel.send(ROWS, rows=[row_fields(source)])

    def step(self) -> list[TextEvent | Failure]:
        """Runs one step of rank 0's engine, if it has work; returns its events and those received from the others.

        Raises:
            PeerLostError: a replica was lost, together with its rows.
        """
        events: list[TextEvent | Failure] = []
        if self._local.busy:
            events += self._local.step()
        else:
            heartbeat.idle()
            with contextlib.suppress(queue.Empty):
                events += self._take(*self._inbox.get(timeout=LOOK))
        with contextlib.suppress(queue.Empty):
            while True:
                events += self._take(*self._inbox.get_nowait())
        return events

    def cancel(self) -> None:
        """Cancels all unfinished answers; nothing can be added afterwards."""
        self._local.cancel()
        for remote in self.remotes:
            remote.rows.clear()

    def close(self, metrics: RunMetrics) -> None:
        """Ends the other replicas and adds their metrics to rank 0's."""
        for remote in self.remotes:
            with contextlib.suppress(PeerLostError):
                remote.channel.send(END)
        missing, until = {remote for remote in self.remotes if not remote.lost}, time.monotonic() + FAREWELL
        with contextlib.suppress(queue.Empty):
            while missing:
                remote, message = self._inbox.get(timeout=max(until - time.monotonic(), 0))
                if isinstance(message, PeerLostError):
                    missing.discard(remote)
                elif message.kind == FIGURES:
                    missing.discard(remote)
                    remote.metrics.take_step_figures(message.fields)
        for remote in self.remotes:
            metrics.add_replica(remote.metrics)

    def _put(self, remote: Remote, message: Message | PeerLostError) -> None:
        self._inbox.put((remote, message))

    def _take(self, remote: Remote, message: Message | PeerLostError) -> list[TextEvent | Failure]:
        if isinstance(message, PeerLostError):
            remote.lost = True
            raise message
        fields = message.fields
        if message.kind == FAILED:
            answer, what, hint = remote.rows.pop(key_of(fields)).answer, fields["what"], fields["hint"]
            if fields["refused"]:
                return [Failure(answer.source, InputError(what, hint))]
            answer.request.finish(FinishReason.ERROR)
            remote.metrics.finished(answer.request)
            return [Failure(answer.source, GenerationError(what, hint))]
        remote.load = Load(*fields["load"])
        events: list[TextEvent | Failure] = []
        for told in fields["rows"]:
            event = remote.rows[key_of(told)].advance(told)
            events.append(event)
            if event.finished:
                del remote.rows[key_of(told)]
                remote.metrics.finished(event.answer.request)
        return events


@dataclass(eq=False)
class _Untold:
    """The progress of a row that has not been sent yet."""

    request: Request
    tokens: list[int] = field(default_factory=list)
    text: str = ""


class Replica:
    """Any replica but rank 0's: answers the rows that rank 0 sends, until rank 0 ends it.

    Args:
        channel: to rank 0.
        generation: the settings common to all rows.
    """

    def __init__(self, channel: Channel, generator: TextGenerator, generation: GenerationConfig, metrics: RunMetrics):
        self._channel, self._generator, self._generation, self._metrics = channel, generator, generation, metrics
        self._inbox: queue.SimpleQueue[Message | PeerLostError] = queue.SimpleQueue()
        self._untold: dict[tuple[int, int], _Untold] = {}
        self._told = 0.0

    def run(self) -> None:
        """Answers rows until rank 0 sends `end`.

        Raises:
            PeerLostError: rank 0 was lost.
        """
        generator = self._generator
        self._channel.send(READY, capacity=generator.capacity)
        _read(self._channel, self._inbox.put)
        while self._take_messages():
            complete = False
            for event in generator.step():
                if isinstance(event, Failure):
                    self._fail(event.source, event.error)
                else:
                    self._note(event)
                    complete = complete or event.finished
            if complete or time.monotonic() - self._told >= TOGETHER:
                self._tell()
        generator.cancel()

    def say_farewell(self) -> None:
        """Sends the metrics of the run to rank 0, as the last message."""
        self._channel.send(FIGURES, **self._metrics.step_figures())

    def _take_messages(self) -> bool:
        """Handles the messages received, waiting for one if there is no work; returns False after `end`."""
        while True:
            if not self._generator.busy:
                heartbeat.idle()
            try:
                message = self._inbox.get(block=not self._generator.busy)
            except queue.Empty:
                return True
            heartbeat.busy()
            if isinstance(message, PeerLostError):
                raise message
            if message.kind == END:
                return False
            for fields in message.fields["rows"]:
                self._add(row_of(fields, self._generation))

    def _add(self, source: EncodedPrompt) -> None:
        try:
            self._generator.add(source)
        except InputError as error:
            self._fail(source, error)

    def _fail(self, source: EncodedPrompt, error: InferenceError) -> None:
        self._untold.pop((source.row, source.sample), None)
        refused = isinstance(error, InputError)
        self._channel.send(
            FAILED, row=source.row, sample=source.sample, what=error.what, hint=error.hint, refused=refused
        )

    def _note(self, event: TextEvent) -> None:
        answer = event.answer
        untold = self._untold.setdefault((answer.row, answer.source.sample), _Untold(answer.request))
        untold.tokens += answer.request.output_ids[-event.tokens :]
        untold.text += event.text

    def _tell(self) -> None:
        rows = [event_fields(key, made.tokens, made.text, made.request) for key, made in self._untold.items()]
        load = self._generator.load
        self._channel.send(EVENTS, rows=rows, load=[load.running, load.waiting, load.kv_use])
        self._untold.clear()
        self._told = time.monotonic()


def _read(channel: Channel, take: Callable[[Any], None]) -> None:
    """Receives in a separate thread, so that two sides that send at the same time never block each other."""

    def read() -> None:
        try:
            while True:
                take(channel.receive())
        except PeerLostError as error:
            take(error)

    threading.Thread(target=read, name=f"rank {channel.peer}", daemon=True).start()
