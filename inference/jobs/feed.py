"""Reads ahead: a thread parses and encodes rows while the model answers earlier ones, up to a maximum lead.

Knows rows and how to encode them; knows nothing about engines or results.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from inference.errors import InferenceError, InputError
from inference.generation.record import BAD_ROW, DUPLICATE, Completion, failed_completion
from inference.generation.text import EncodedPrompt
from inference.inputs import Row, RowStream
from inference.inputs.prompts import Prompt, RowError
from inference.jobs.row_sets import NameSet, NumberSet, NumberTable, fingerprint
from inference.parallel import heartbeat


@dataclass
class DoneRows:
    """The rows that earlier runs have finished.

    Args:
        numbers: the rows to skip.
        names: the names of these rows.
        fingerprints: a hash of each row's digest, or of its name if it has no digest.
        failed: how many of these rows failed.
    """

    numbers: NumberSet = field(default_factory=NumberSet)
    names: NameSet = field(default_factory=NameSet)
    fingerprints: NumberTable = field(default_factory=lambda: NumberTable(0))
    failed: int = 0


# An encoded row, or the record of a row that cannot be answered.
Item = EncodedPrompt | Completion


class Feed:
    """Encoded rows, in the order of the input.

    Args:
        encode: encodes a prompt; raises InferenceError if it cannot be used.
        ahead: maximum number of rows to read ahead.
        done: rows to skip.

    Attributes:
        error: the error that ended the input early; set once every row before it has been queued.
        skipped: number of rows skipped.
    """

    def __init__(
        self,
        rows: RowStream,
        encode: Callable[[int, Prompt], EncodedPrompt],
        ahead: int,
        done: DoneRows | None = None,
    ):
        self.rows = rows
        self._encode = encode
        self._done = done or DoneRows()
        self._ahead = max(ahead, 1)
        self._queue: queue.Queue[Item | None] = queue.Queue(self._ahead)
        self._complete = threading.Event()
        self._pushed_back: list[Item] = []
        self._over = False
        self.error: Exception | None = None
        self.skipped = 0
        threading.Thread(target=self._read, name="read-ahead", daemon=True).start()

    @property
    def ended(self) -> bool:
        """Whether every row has been taken."""
        return self._over and not self._pushed_back

    @property
    def num_ready(self) -> int:
        """Rows that are ready to be taken."""
        return self._queue.qsize() + len(self._pushed_back)

    @property
    def all_read(self) -> bool:
        """Whether the input has been read to its end, so that `rows.count` is final."""
        return self._complete.is_set()

    def take(self, wait: bool) -> Item | None:
        """Returns the next row; None at the end, or if no row is ready and `wait` is False."""
        if self._pushed_back:
            return self._pushed_back.pop(0)
        if self._over:
            return None
        if wait:
            heartbeat.idle()
        try:
            item = self._queue.get(block=wait)
        except queue.Empty:
            return None
        if wait:
            heartbeat.busy()
        self._over = item is None
        return item

    def whole(self, seconds: float) -> list[Item] | None:
        """Returns all remaining rows if the read-ahead holds them all; None if there are more, or more may come.

        Does not take them. Waits at most `seconds` for a slow input.
        """
        limit = time.monotonic() + seconds
        while not self._complete.is_set() and self._queue.qsize() < self._ahead and time.monotonic() < limit:
            self._complete.wait(0.005)
        if not self._complete.is_set():
            return None
        items: list[Item] = []
        while (item := self.take(wait=True)) is not None:
            items.append(item)
        self._pushed_back = list(items)
        return items

    def _read(self) -> None:
        try:
            for row in self.rows:
                if row.number in self._done.numbers:
                    self._check_same(row)
                    self.skipped += 1
                else:
                    self._queue.put(self._item(row))
            if self.skipped < len(self._done.numbers):
                raise self._changed(f"{len(self._done.numbers) - self.skipped:,} rows that have a record are gone")
        except Exception as error:  # raised by the thread that takes rows
            self.error = error
        self._complete.set()
        self._queue.put(None)

    def _check_same(self, row: Row) -> None:
        """Rejects a row that has a record but has changed since.

        Raises:
            InputError: the row has changed; the message names its file and line.
        """
        expected = self._done.fingerprints[row.number]
        digest, name = row.digest, str(row.number)
        # An argument has no digest; the identity of the job covers it.
        if not expected or digest is None or expected == fingerprint(digest):
            return
        if not self.rows.texts_only:
            try:
                name = row.parse().custom_id
            except RowError as error:
                name = error.custom_id or name
        if expected != fingerprint(name):
            raise self._changed(f"{row.where} is another row than in the run before")

    @staticmethod
    def _changed(what: str) -> InputError:
        return InputError(
            f"--resume: the input has changed: {what}; give it as it was (rows may be added at its end)",
            "--overwrite starts again",
        )

    def _item(self, row: Row) -> Item:
        problem: InferenceError | None = None
        digest = None
        try:
            prompt = row.parse()
            custom_id = prompt.custom_id
            if custom_id == str(row.number):
                digest = row.digest
                prompt = replace(prompt, digest=digest)
        except RowError as error:
            custom_id, problem = error.custom_id or str(row.number), error
            digest = row.digest if custom_id == str(row.number) else None
        # Rows without a custom_id are named by their numbers, which are unique.
        if not self.rows.texts_only and not self._done.names.add(custom_id):
            message = f"{row.where}: custom_id '{custom_id}' is that of an earlier row too; give each row its own"
            return failed_completion(custom_id, row.number, DUPLICATE, message, line=row.line)
        if problem is None:
            try:
                return self._encode(row.number, prompt)
            except InferenceError as error:
                problem = error
        return failed_completion(custom_id, row.number, BAD_ROW, str(problem), line=row.line, input_digest=digest)
