"""Streamers, which receive text while it is generated.

Rows are kept apart: the first unfinished row is shown as it grows, and the others wait for their turn. The class names
and `put`/`end` are those of MindFormers and Hugging Face.
"""

from __future__ import annotations

import queue
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TextIO

from inference.tokenizer import IncrementalDetokenizer, Tokenizer


class BaseStreamer:
    """Takes text of any row; passes it to `on_finalized_text` in the order of the rows."""

    def __init__(self, skip_prompt: bool = False):
        self.skip_prompt = skip_prompt
        self._reset()

    def _reset(self) -> None:
        self._current = 0
        self._pending: dict[int, list[str]] = {}
        self._finished: set[int] = set()

    def prompt(self, row: int, text: str) -> None:
        """Adds a row's prompt, if prompts are shown."""
        if not self.skip_prompt:
            self.write(row, text)

    def write(self, row: int, text: str) -> None:
        """Adds text to a row."""
        if row == self._current:
            self._emit(text)
        else:
            self._pending.setdefault(row, []).append(text)

    def finish(self, row: int) -> None:
        """Ends a row; emits the text collected for the following rows, up to the first unfinished one."""
        self._finished.add(row)
        while self._current in self._finished:
            self.on_finalized_text("", stream_end=True)
            self._current += 1
            self._emit("".join(self._pending.pop(self._current, [])))

    def close(self) -> None:
        """Ends the stream. The streamer can be used again afterwards."""
        self._reset()

    def _emit(self, text: str) -> None:
        if text:
            self.on_finalized_text(text, stream_end=False)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called with each piece of text, and with `stream_end` at the end of each row."""
        raise NotImplementedError


class SeparateStreamers:
    """Gives each row its own streamer, so that several rows can be streamed at once.

    Args:
        streamers: one for each row, in the order of the rows.
    """

    def __init__(self, streamers: Sequence[BaseStreamer]):
        self._streamers = streamers
        self._open = set(range(len(streamers)))

    def __len__(self) -> int:
        return len(self._streamers)

    def prompt(self, row: int, text: str) -> None:
        self._streamers[row].prompt(0, text)

    def write(self, row: int, text: str) -> None:
        self._streamers[row].write(0, text)

    def finish(self, row: int) -> None:
        """Ends the row's stream."""
        self._streamers[row].finish(0)
        self._streamers[row].close()
        self._open.discard(row)

    def close(self) -> None:
        """Ends the streams that are still open."""
        for row in self._open:
            self._streamers[row].close()


class IdStreams:
    """Passes token ids to streamers with `put` and `end`, like those of MindFormers and Hugging Face.

    `put` is called with a row's prompt first and then with its tokens, and `end` when the row ends.

    Args:
        streamers: one for all rows, which gets them one after the other; or one for each row.
    """

    def __init__(self, streamers: Any):
        self._separate = isinstance(streamers, Sequence)
        self._streamers = list(streamers) if self._separate else [streamers]
        self._pending: dict[int, list[list[int]]] = {}
        self._taken: dict[int, int] = {}
        self._ended: set[int] = set()
        self._current = 0

    def __len__(self) -> int:
        return len(self._streamers)

    @property
    def is_single(self) -> bool:
        """Whether one streamer gets all rows."""
        return not self._separate

    def prompt(self, row: int, ids: Sequence[int]) -> None:
        """Pass a row's prompt."""
        self._pass(row, list(ids))

    def tokens(self, row: int, output_ids: Sequence[int]) -> None:
        """Pass the tokens of a row that are new since the last call."""
        taken = self._taken.get(row, 0)
        self._taken[row] = len(output_ids)
        for token in output_ids[taken:]:
            self._pass(row, [token])

    def finish(self, row: int) -> None:
        """End a row; pass what was collected for the following rows, up to the first unfinished one."""
        self._ended.add(row)
        if self._separate:
            self._streamers[row].end()
            return
        while self._current in self._ended:
            self._streamers[0].end()
            self._current += 1
            for ids in self._pending.pop(self._current, []):
                self._streamers[0].put(ids)

    def close(self) -> None:
        """End the rows that are still open, so that no consumer waits forever."""
        if self._separate:
            for row in sorted(set(range(len(self._streamers))) - self._ended):
                self._streamers[row].end()
        elif not self._ended or self._pending or set(self._taken) - self._ended:
            self._streamers[0].end()

    def _pass(self, row: int, ids: list[int]) -> None:
        if self._separate:
            self._streamers[row].put(ids)
        elif row == self._current:
            self._streamers[0].put(ids)
        else:
            self._pending.setdefault(row, []).append(ids)


def takes_ids(streamer: Any) -> bool:
    """Return whether a streamer takes ids through `put` and `end` instead of text."""
    takes_text = isinstance(streamer, BaseStreamer) and (
        type(streamer).on_finalized_text is not BaseStreamer.on_finalized_text
    )
    return not takes_text and hasattr(streamer, "put") and hasattr(streamer, "end")


class TextStreamer(BaseStreamer):
    """Prints text as it is generated, each row on its own lines.

    Args:
        tokenizer: decodes the ids given to `put`.
        skip_prompt: do not print the prompt.
        skip_special_tokens: leave special tokens out of the text that `put` decodes.
        file: where to print; by default `sys.stdout` at the time of printing.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        skip_prompt: bool = False,
        skip_special_tokens: bool = True,
        file: TextIO | None = None,
    ):
        super().__init__(skip_prompt)
        self.tokenizer = tokenizer
        self.skip_special_tokens = skip_special_tokens
        self._file = file
        self._begin()

    def _begin(self) -> None:
        self._detokenizer = IncrementalDetokenizer(self.tokenizer, self.skip_special_tokens)
        self._saw_prompt = False

    def put(self, value: int | Iterable[int]) -> None:
        """Takes token ids of a single row: first the whole prompt, then one or more at a time."""
        ids = [int(i) for i in value] if isinstance(value, Iterable) else [int(value)]
        text = "".join(self._detokenizer.push(token_id) for token_id in ids)
        if self._saw_prompt or not self.skip_prompt:
            self.write(0, text)
        self._saw_prompt = True

    def end(self) -> None:
        """Ends the single row that `put` was given."""
        self.write(0, self._detokenizer.finish())
        self.finish(0)
        self.close()
        self._begin()

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        file = self._file or sys.stdout
        file.write(text + ("\n" if stream_end else ""))
        file.flush()


class TextIteratorStreamer(TextStreamer):
    """Passes text to a consumer in another thread, which iterates over it.

    Args:
        timeout: seconds to wait for the next piece before raising `queue.Empty`; None waits forever.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        skip_prompt: bool = False,
        timeout: float | None = None,
        skip_special_tokens: bool = True,
    ):
        super().__init__(tokenizer, skip_prompt, skip_special_tokens)
        self.timeout = timeout
        self._queue: queue.Queue[str | None] = queue.Queue()

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self._queue.put(text)

    def close(self) -> None:
        """Ends the iteration, even if the generation failed."""
        super().close()
        self._queue.put(None)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        text = self._queue.get(timeout=self.timeout)
        if text is None:
            raise StopIteration
        return text
