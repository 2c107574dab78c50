"""Rows to a remote model: an answer or a reason for each, whatever the endpoint does.

A row is tried again by itself, and never the rows beside it. Knows what may be tried again; knows nothing about Beam.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from inference.errors import InputError
from inference.inputs.prompts import Prompt
from inference.remote.endpoint import Endpoint
from inference.remote.http import Connection, Response, TransportError
from inference.remote.pacing import RateLimit, backoff, retry_after
from inference.remote.payload import Reply, ResponseError, error_message, read_reply, request_body

# Statuses that may be others the next time; 529 is "overloaded" of some providers.
AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)
# Why a row has no answer.
BAD_ROW, REFUSED, UNREACHABLE, THROTTLED, BAD_RESPONSE = (
    "bad_row",
    "refused",
    "unreachable",
    "throttled",
    "bad_response",
)


@dataclass(frozen=True)
class RemoteAnswer:
    """A row's answer.

    Args:
        seconds: of the try that succeeded.
        attempts: tries in all.
    """

    reply: Reply
    seconds: float
    attempts: int


@dataclass(frozen=True)
class RemoteFailure:
    """Why a row has none.

    Args:
        kind: `bad_row` (it cannot be asked), `refused` (the endpoint will not answer it), `throttled` (429 to the
            last), `bad_response` (what came was no answer), or `unreachable`.
        message: a line; the key is never in it.
        status: of the last response, where there was one.
    """

    kind: str
    message: str
    attempts: int
    status: int | None = None


class Client:
    """Asks an endpoint; to be used from any number of threads, which share its limits.

    Raises:
        ConfigError: the key's variable is not set.
    """

    def __init__(self, endpoint: Endpoint, sleep: Callable[[float], None] = time.sleep):
        endpoint.check_key()
        self.endpoint = endpoint
        self._sleep = sleep
        self._rate = RateLimit(endpoint.requests_per_second, sleep=sleep)
        # Whoever has a connection has the right to a request.
        self._connections: queue.LifoQueue[Connection] = queue.LifoQueue()
        for _ in range(endpoint.concurrency):
            self._connections.put(Connection(endpoint))
        self._threads = ThreadPoolExecutor(endpoint.concurrency, "remote")

    def answer_all(
        self,
        prompts: Sequence[Prompt],
        settings: Mapping[str, Any] | None = None,
        tell: Callable[[Prompt, RemoteAnswer | RemoteFailure], None] = lambda prompt, outcome: None,
    ) -> list[RemoteAnswer | RemoteFailure]:
        """What came of each prompt, in their order.

        Args:
            tell: is told it as soon as it has come, in any thread.
        """

        def ask(prompt: Prompt) -> RemoteAnswer | RemoteFailure:
            outcome = self.answer(prompt, settings)
            tell(prompt, outcome)
            return outcome

        return list(self._threads.map(ask, prompts))

    def answer(self, prompt: Prompt, settings: Mapping[str, Any] | None = None) -> RemoteAnswer | RemoteFailure:
        """What came of a prompt, after all tries that it takes."""
        try:
            body = request_body(self.endpoint, prompt, settings or {})
        except InputError as error:
            return RemoteFailure(BAD_ROW, str(error), 0)
        attempt = 0
        while True:
            started = time.perf_counter()
            outcome, pause = self._try(body, attempt)
            if isinstance(outcome, Reply):
                return RemoteAnswer(outcome, time.perf_counter() - started, attempt + 1)
            if pause is None or attempt == self.endpoint.max_retries:
                return self._named(outcome)
            self._sleep(pause)
            attempt += 1

    def close(self) -> None:
        """Closes all connections; rows that are under way come to their end first."""
        self._threads.shutdown()
        while not self._connections.empty():
            self._connections.get().close()

    def _named(self, failure: RemoteFailure) -> RemoteFailure:
        """With the endpoint's name before its message, and without the key, should the endpoint have repeated it."""
        message, key = f"{self.endpoint.host}: {failure.message}", self.endpoint.key()
        return replace(failure, message=message.replace(key, "***") if key else message)

    def _try(self, body: bytes, attempt: int) -> tuple[Reply | RemoteFailure, float | None]:
        """One request; its reply, or why there is none and the seconds to wait for the next try (None: there is no
        use in one).
        """
        endpoint, tries = self.endpoint, attempt + 1
        pause = backoff(attempt, endpoint.first_delay, endpoint.longest_delay)
        try:
            with self._connection() as connection:
                response = connection.post(body)
        except TransportError as error:
            return RemoteFailure(UNREACHABLE, str(error), tries), pause
        if response.status == 200:
            try:
                return read_reply(endpoint, response.body), None
            except ResponseError as error:
                return RemoteFailure(BAD_RESPONSE, str(error), tries, 200), pause
        message = f"status {response.status}: {error_message(response.body)}"
        if response.status not in AGAIN:
            return RemoteFailure(REFUSED, message, tries, response.status), None
        kind = THROTTLED if response.status == 429 else UNREACHABLE
        return RemoteFailure(kind, message, tries, response.status), self._asked(response, pause)

    def _asked(self, response: Response, pause: float) -> float:
        """Seconds to wait: those that the endpoint asks for, if it does. Then nobody else asks meanwhile either."""
        asked = retry_after(response.retry_after)
        if asked is None:
            return pause
        seconds = min(asked, self.endpoint.longest_delay)
        self._rate.hold(seconds)
        return seconds

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        connection = self._connections.get()
        try:
            self._rate.wait()
            yield connection
        finally:
            self._connections.put(connection)
