"""Sends rows to a remote model: returns an answer or a failure for each row, whatever the endpoint does.

A failed row is retried alone, never together with other rows. Knows what may be retried; knows nothing about Beam.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from inference.errors import InputError
from inference.inputs.prompts import Prompt
from inference.remote.endpoint import Endpoint
from inference.remote.http import Response, Transport, TransportError
from inference.remote.pacing import RateLimit, backoff, retry_after
from inference.remote.payload import Reply, ResponseError, error_message, read_reply, request_body

# Statuses worth a retry; 529 is some providers' "overloaded".
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
        seconds: duration of the request that succeeded.
        attempts: number of requests, including that one.
    """

    reply: Reply
    seconds: float
    attempts: int


@dataclass(frozen=True)
class RemoteFailure:
    """Why a row has no answer.

    Args:
        kind: `bad_row` (the row cannot be sent), `refused` (the endpoint will not answer it), `throttled` (status 429
            until the last retry), `bad_response` (the response is not an answer), or `unreachable`.
        message: one line, without the key.
        status: HTTP status of the last response, if there was one.
    """

    kind: str
    message: str
    attempts: int
    status: int | None = None


class Client:
    """Sends rows to an endpoint. Any number of threads may share a client and its limits.

    Raises:
        ConfigError: the key's variable is not set, or the environment names an unusable proxy.
    """

    def __init__(self, endpoint: Endpoint, sleep: Callable[[float], None] = time.sleep):
        endpoint.check_key()
        self.endpoint = endpoint
        self._sleep = sleep
        self._rate = RateLimit(endpoint.requests_per_second, sleep=sleep)
        self._transport = Transport(endpoint)
        self._in_flight = threading.Semaphore(endpoint.concurrency)
        self._threads = ThreadPoolExecutor(endpoint.concurrency, "remote")

    def answer_all(
        self,
        prompts: Sequence[Prompt],
        settings: Mapping[str, Any] | None = None,
        tell: Callable[[Prompt, RemoteAnswer | RemoteFailure], None] = lambda prompt, outcome: None,
    ) -> list[RemoteAnswer | RemoteFailure]:
        """Answer prompts; the outcomes are in the order of the prompts.

        Args:
            tell: called with each outcome as soon as it is available, in any thread.
        """

        def ask(prompt: Prompt) -> RemoteAnswer | RemoteFailure:
            outcome = self.answer(prompt, settings)
            tell(prompt, outcome)
            return outcome

        return list(self._threads.map(ask, prompts))

    def answer(self, prompt: Prompt, settings: Mapping[str, Any] | None = None) -> RemoteAnswer | RemoteFailure:
        """Answer one prompt, with retries up to the endpoint's limit."""
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
        """Finish the rows in flight and close all connections."""
        self._threads.shutdown()
        self._transport.close()

    def _named(self, failure: RemoteFailure) -> RemoteFailure:
        """Prefix a failure's message with the endpoint's host, and remove the key from it."""
        return replace(failure, message=self.endpoint.redacted(f"{self.endpoint.host}: {failure.message}"))

    def _try(self, body: bytes, attempt: int) -> tuple[Reply | RemoteFailure, float | None]:
        """Send one request: its reply or failure, and the seconds to wait before a retry (None: do not retry)."""
        endpoint, tries = self.endpoint, attempt + 1
        pause = backoff(attempt, endpoint.first_delay, endpoint.longest_delay)
        try:
            with self._in_flight:
                self._rate.wait()
                response = self._transport.post(body)
        except TransportError as error:
            return RemoteFailure(UNREACHABLE, str(error), tries), pause
        if response.status == 200:
            try:
                return read_reply(endpoint, response.body), None
            except ResponseError as error:
                return RemoteFailure(BAD_RESPONSE, str(error), tries, 200), pause
        message = f"status {response.status}: {error_message(endpoint, response.body)}"
        if response.status not in AGAIN:
            return RemoteFailure(REFUSED, message, tries, response.status), None
        kind = THROTTLED if response.status == 429 else UNREACHABLE
        return RemoteFailure(kind, message, tries, response.status), self._asked(response, pause)

    def _asked(self, response: Response, pause: float) -> float:
        """Return the seconds to wait: as many as the endpoint asks for, else `pause`.

        If the endpoint asks for a wait, all other requests wait too.
        """
        asked = retry_after(response.retry_after)
        if asked is None:
            return pause
        seconds = min(asked, self.endpoint.longest_delay)
        self._rate.hold(seconds)
        return seconds
