"""Writes answers in the requested format and order, to standard output and the save file.

Rows are never interleaved: a record is written when it is complete, and only the first incomplete row streams its text
while the others wait. Knows nothing about models.
"""

from __future__ import annotations

import os
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import TextIO

from inference.errors import InferenceError
from inference.generation.record import Completion
from inference.generation.text import Answer, EncodedPrompt, TextEvent
from inference.jobs.records import RENDERERS, Result
from inference.jobs.save_file import Appender, SaveFile
from inference.terminal.signals import WRITING

Heading = Callable[[EncodedPrompt], str]
# Maximum number of open rows in ordered output, as a multiple of the rows that run at once.
WAITING = 16


class TextShow:
    """Prints text: the first open row as it is generated, then the others.

    Args:
        stream: print text as it is generated, rather than when it is complete.
        heading: makes what is printed before the answer of a prompt; None for nothing.
    """

    def __init__(self, file: TextIO, stream: bool, heading: Heading | None):
        self._file, self._stream, self._heading = file, stream, heading
        # Unprinted text of each row; the first row is the one being printed.
        self._pending: OrderedDict[int, list[str]] = OrderedDict()
        self._ended: set[int] = set()
        # Rows that have text but have not ended.
        self._begun: set[int] = set()

    def expect(self, row: int) -> None:
        self._pending[row] = []

    def take(self, event: TextEvent) -> None:
        answer = event.answer
        pending = self._pending[answer.row]
        if self._heading and event.first:
            pending.append(self._heading(answer.source))
        if self._stream:
            pending.append(event.text)
        elif event.finished:
            pending.append(answer.text)
        if any(pending):
            self._begun.add(answer.row)
        if event.finished:
            # Further samples of the same prompt, each on a new line.
            pending += [f"\n{sample.text}" for sample in answer.samples[1:]]
            pending.append("\n")
            self._end(answer.row)
        self._show()

    def leave_out(self, row: int) -> None:
        """Ends a row that gets no answer: ends its line if part of it was printed, and drops the rest."""
        if row in self._begun:
            self._pending[row][:] = ["\n"] if row == next(iter(self._pending)) else []
        self._end(row)
        self._show()

    def _end(self, row: int) -> None:
        self._begun.discard(row)
        self._ended.add(row)

    def _show(self) -> None:
        text = ""
        while self._pending:
            row, pieces = next(iter(self._pending.items()))
            text += "".join(pieces)
            pieces.clear()
            if row not in self._ended:
                break
            self._ended.remove(row)
            del self._pending[row]
        if text:
            self._file.write(text)
            self._file.flush()


class AnswerWriter:
    """Writes answers and failures.

    Args:
        form: text, json or mindformers.
        model: name of the model in records.
        rows_at_once: maximum number of rows that run at once.
        ordered: write records in the order of the rows; text and mindformers always do.
        stream: print text as it is generated (text only).
        echo: include the prompts.
        heading: what to print before each answer on standard output (text only), if not the prompt as `echo` does.
        stdout: stream for the answers, besides the save file; None for no stream.
    """

    def __init__(
        self,
        form: str,
        model: str,
        rows_at_once: int,
        *,
        ordered: bool,
        stream: bool,
        echo: bool,
        save_file: SaveFile | None,
        heading: Heading | None = None,
        stdout: TextIO | None = sys.stdout,
    ):
        self._form, self._model, self._echo = form, model, echo
        self._ordered = ordered or form != "json"
        self._most_waiting = WAITING * rows_at_once
        self._save_file = save_file
        heading = heading or ((lambda source: source.heading) if echo else None)
        self._show = TextShow(stdout, stream, heading) if stdout is not None and form == "text" else None
        self._out = stdout if form != "text" else None
        # Unwritten rows in their order, each with its line once it is complete.
        self._open: OrderedDict[int, str | None] = OrderedDict()
        self._complete: set[int] = set()
        self._due: list[str] = []
        self._num_due = 0
        self._num_handed = 0
        self.num_out = 0
        """Rows of this run that have been written; on the disk if there is a save file."""

    @property
    def has_room(self) -> bool:
        """Whether another row may begin: only a limited number of rows may wait for earlier ones."""
        return not self._ordered or len(self._open) < self._most_waiting

    def expect(self, row: int) -> None:
        """Announces that a row starts; rows start in order."""
        self._open[row] = None
        if self._show:
            self._show.expect(row)

    def take(self, event: TextEvent) -> None:
        """Takes the next piece of an answer."""
        if self._show:
            self._show.take(event)
        if event.finished:
            self._finish(event.answer.row, event.answer)

    def fail(self, failed: Completion) -> None:
        """Takes the record of a row that failed after it started."""
        assert failed.row is not None
        if self._show:
            self._show.leave_out(failed.row)
        self._finish(failed.row, failed)

    def flush(self) -> None:
        """Hands all due records to the operating system; `commit` flushes them to the disk.

        Raises:
            InferenceError: they could not be written; complete records stay.
        """
        lines, number = self._due, self._num_due
        self._due, self._num_due = [], 0
        if lines and self._save_file:
            self._save_file.append(lines)
        if lines and self._out is not None:
            _print(self._out, lines)
        self._num_handed += number

    def commit(self) -> None:
        """Flushes all written records to the disk."""
        number = self._num_handed
        if self._save_file:
            self._save_file.commit()
        self.num_out = number

    def _finish(self, row: int, outcome: Answer | Completion) -> None:
        self._open[row] = RENDERERS[self._form](Result.of(outcome, self._model), self._echo)
        self._complete.add(row)
        if not self._ordered:
            self._release(row)
        while self._open and (first := next(iter(self._open))) in self._complete:
            self._release(first)

    def _release(self, row: int) -> None:
        line = self._open.pop(row)
        self._complete.remove(row)
        self._num_due += 1
        if line is not None:
            self._due.append(line)


def _print(file: TextIO, lines: list[str]) -> None:
    """Prints whole lines only."""
    data = "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")
    with WRITING:
        try:
            file.flush()
            Appender(file.fileno(), "standard output").append(data)
        except BrokenPipeError as error:
            # Otherwise Python would write again at exit, and fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())
            raise InferenceError("the reader of standard output has gone") from error
        except OSError as error:
            raise InferenceError(f"standard output cannot be written: {error.strerror}") from error
