"""The main loop of a job: takes rows from the feed, runs them through the engine, and passes the results to the writer.

Knows the order of these steps; knows nothing about formats, files or models. The model is loaded when the first row
needs it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field

from inference.engine.metrics import process_age
from inference.errors import InputError
from inference.generation.record import Completion, failure_of
from inference.generation.samples import Generator
from inference.generation.text import EncodedPrompt, Failure, Load, TextEvent
from inference.jobs.feed import Feed, Item
from inference.jobs.progress import Course, Figures
from inference.jobs.writer import AnswerWriter
from inference.terminal.progress import ProgressLine

# Longest time between commits to the disk, seconds.
COMMIT_AFTER = 1.0


@dataclass
class Outcome:
    """The outcome of this run; `rows` includes the `failed` ones."""

    rows: int = 0
    failed: int = 0
    cut: int = 0
    """Prompts that were truncated to the model's context."""
    first_failure: str | None = None
    stopped: bool = False
    """Whether the job stopped early because too many rows failed."""
    seconds: float = 0.0
    """Time since the model was loaded."""
    first_token: float | None = None
    """Age of the process at the first token, seconds."""
    course: Course = field(default_factory=Course)


class Job:
    """One run over the rows of an input.

    Args:
        feed: supplies rows.
        writer: receives answers and failures.
        open_generator: loads the model; called with the first row that can be answered.
        progress: displays the progress; None to display nothing.
        complain: called with the message of each failure; None if the output format records failures itself.
        max_errors: how many rows may fail before the job stops; None for no limit.
        earlier: number of rows of earlier runs that are in the output.
    """

    def __init__(
        self,
        feed: Feed,
        writer: AnswerWriter,
        open_generator: Callable[[EncodedPrompt], AbstractContextManager[Generator]],
        *,
        progress: ProgressLine | None = None,
        complain: Callable[[str], None] | None = None,
        max_errors: int | None = None,
        earlier: int = 0,
    ):
        self._feed, self._writer, self._open = feed, writer, open_generator
        self._progress, self._complain, self._max_errors = progress, complain, max_errors
        self._generator: Generator | None = None
        self._started = time.perf_counter()
        self._committed = self._started
        self._tokens_in = self._tokens_out = 0
        self._earlier = earlier
        self.outcome = Outcome()

    def run(self) -> Outcome:
        """Runs all rows to completion.

        Raises:
            InferenceError: the input ended early, or the output cannot be written. Records already written are
                complete.
        """
        outcome = self.outcome
        try:
            with ExitStack() as stack:
                try:
                    while self._fill(stack):
                        assert self._generator is not None
                        for event in self._generator.step():
                            self._take(event)
                        self._note()
                finally:
                    if self._generator is not None:
                        self._generator.cancel()
            self._writer.flush()
        finally:
            self._writer.commit()
            if self._generator is not None:
                outcome.seconds = time.perf_counter() - self._started
                outcome.course.add(outcome.seconds, self._figures())
            if self._progress:
                self._progress.clear()
        if self._feed.error is not None:
            raise self._feed.error
        return outcome

    def _fill(self, stack: ExitStack) -> bool:
        """Adds ready rows to the engine while it has room; returns False when there is nothing left to do."""
        while True:
            if self.outcome.stopped:
                return False
            generator = self._generator
            busy = generator is not None and generator.busy
            if generator is not None and not (generator.has_room and self._writer.has_room):
                return True
            item = self._feed.take(wait=not busy)
            if item is None:
                return busy
            self._begin(item, stack)

    def _begin(self, item: Item, stack: ExitStack) -> None:
        self.outcome.rows += 1
        if isinstance(item, Completion):
            assert item.row is not None
            self._writer.expect(item.row)
            self._fail(item)
            return
        self._writer.expect(item.row)
        if self._generator is None:
            # Write earlier failures first: loading may take minutes.
            self._writer.flush()
            self._generator = stack.enter_context(self._open(item))
            self._started = time.perf_counter()
            # Start the course before the first step, so that it includes the tokens of that step.
            self.outcome.course.add(0.0, self._figures())
            if self._progress:
                self._progress.restart()
        try:
            self._generator.add(item)
        except InputError as error:
            self._fail(failure_of(item, error))
            return
        self.outcome.cut += item.truncated > 0

    def _fail(self, failed: Completion) -> None:
        outcome, message = self.outcome, str(failed.error)
        outcome.failed += 1
        outcome.first_failure = outcome.first_failure or message
        outcome.stopped = self._max_errors is not None and outcome.failed > self._max_errors
        self._writer.fail(failed)
        if self._complain:
            if self._progress:
                self._progress.clear()
            self._complain(message)
        self._note()

    def _take(self, event: TextEvent | Failure) -> None:
        if isinstance(event, Failure):
            self._fail(failure_of(event.source, event.error))
            return
        request = event.answer.request
        self._tokens_out += event.tokens
        self.outcome.first_token = self.outcome.first_token or process_age()
        if event.first:
            self._tokens_in += request.num_prompt_tokens
        self._writer.take(event)

    def _note(self) -> None:
        """Flushes complete records; commits and displays the progress when they are due."""
        self._writer.flush()
        now = time.perf_counter()
        is_due = self._progress is not None and self._progress.is_due
        if is_due or now - self._committed > COMMIT_AFTER:
            self._writer.commit()
            self._committed = time.perf_counter()
        if self.outcome.course.is_due(now - self._started):
            self.outcome.course.add(now - self._started, self._figures())
        if is_due and self._progress is not None:
            self._progress.show(self._figures().line(now - self._started), now - self._started)

    def _figures(self) -> Figures:
        load = self._generator.load if self._generator else Load()
        feed = self._feed
        return Figures(
            done=self._earlier + self._writer.num_out,
            earlier=self._earlier,
            failed=self.outcome.failed,
            expected=feed.rows.count if feed.all_read else feed.rows.expected(),
            exact=feed.all_read or feed.rows.known_count is not None,
            prompt_tokens=self._tokens_in,
            completion_tokens=self._tokens_out,
            running=load.running,
            waiting=load.waiting + feed.num_ready,
            kv_use=load.kv_use,
        )
