"""Answers on their way out: standard output and the save file, in the form that was asked for.

Knows forms and files; knows nothing about models. A record is complete when it is written: a run that breaks off
leaves whole records behind and no half ones.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from inference.errors import InferenceError, InputError
from inference.generation.streamers import BaseStreamer
from inference.generation.text import Answer, TextEvent
from inference.interrupt import WRITING


def record(answer: Answer, model: str) -> dict[str, Any]:
    """One answer as the JSON object of a line of output. Times are in seconds."""
    request, source = answer.request, answer.source
    timing = request.timing
    row: dict[str, Any] = {
        "custom_id": source.prompt.custom_id,
        "prompt": source.text,
        "text": answer.text,
        "token_ids": list(request.output_ids),
        "finish_reason": request.finish_reason.value if request.finish_reason else None,
        "prompt_tokens": len(request.prompt_ids),
        "completion_tokens": len(request.output_ids),
        "ttft_seconds": _rounded(timing.ttft),
        "total_seconds": _rounded(timing.total),
        "model": model,
    }
    if not source.generation.greedy:
        row["seed"] = request.seed
    if source.truncated:
        row["truncated_tokens"] = source.truncated
    if source.generation.logprobs is not None:
        row["logprobs"] = [
            {"token_id": item.token_id, "logprob": item.logprob, "top": [list(pair) for pair in item.top]}
            for item in request.logprobs
        ]
    return row


def render_json(answer: Answer, model: str) -> str:
    return json.dumps(record(answer, model), ensure_ascii=False)


def render_mindformers(answer: Answer, model: str) -> str:
    """MindFormers' result: the prompt and its answer as one text, in a list."""
    return json.dumps({"text_generation_text": [answer.source.text + answer.text]}, ensure_ascii=False)


def render_text(answer: Answer, model: str) -> str:
    return answer.text


RENDERERS: dict[str, Callable[[Answer, str], str]] = {
    "json": render_json,
    "mindformers": render_mindformers,
    "text": render_text,
}


class TerminalStreamer(BaseStreamer):
    """Rows as text on standard output, one after the other, each on lines of its own."""

    def __init__(self, file: TextIO):
        super().__init__()
        self._file = file

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._file.write(text + ("\n" if stream_end else ""))
        self._file.flush()


class AnswerWriter:
    """Writes events as they come: json records as they finish, for they carry the name of their prompt, the other
    forms in the order of the prompts.

    Args:
        form: text, json or mindformers.
        model: name of the model in records.
        stream: show text while it grows (form text only).
        echo: put the prompt before its answer (form text only).
        save_file: where records go as well; it must not exist yet, unless `overwrite`. It is made, or its old content
            lost, when there is a first record for it, and not by a run that fails before.
    """

    def __init__(
        self, form: str, model: str, *, stream: bool, echo: bool, save_file: Path | None, overwrite: bool = False
    ):
        self._form = form
        self._model = model
        self._echo = echo
        self._streamer = TerminalStreamer(sys.stdout) if form == "text" else None
        self._stream = stream
        self._save_file = save_file
        self._overwrite = overwrite
        self._file: TextIO | None = None
        self._waiting: dict[int, str] = {}
        self._next_row = 0

    def take(self, event: TextEvent) -> None:
        """Takes the next piece of an answer."""
        if self._streamer:
            self._show(self._streamer, event)
        if event.finished:
            self._waiting[event.answer.row] = self._line(event.answer)
            for line in self._due(event.answer.row):
                self._write(line)

    def _line(self, answer: Answer) -> str:
        echoed = answer.source.text if self._echo and self._form == "text" else ""
        return echoed + RENDERERS[self._form](answer, self._model)

    def _due(self, finished: int) -> Iterator[str]:
        """The lines that can be written now that this row has finished."""
        if self._form == "json":
            yield self._waiting.pop(finished)
        while self._next_row in self._waiting:
            yield self._waiting.pop(self._next_row)
            self._next_row += 1

    def _write(self, line: str) -> None:
        with WRITING:
            if not self._streamer:
                sys.stdout.write(line + "\n")
                sys.stdout.flush()
            if self._save_file:
                # Kept open; closed by `close`.
                self._file = self._file or _open_new(self._save_file, self._overwrite)
                _append(self._file, line)

    def _show(self, streamer: TerminalStreamer, event: TextEvent) -> None:
        row, shown = event.answer.row, event.text if self._stream else ""
        started = len(event.answer.request.output_ids) == 1
        if self._echo and started:
            streamer.write(row, event.answer.source.text)
        if event.finished and not self._stream:
            shown = event.answer.text
        streamer.write(row, shown)
        if event.finished:
            streamer.finish(row)

    def close(self) -> None:
        if self._file:
            # Every record was flushed; what could not be written has been reported.
            with contextlib.suppress(OSError):
                self._file.close()


def check_writable(path: Path, overwrite: bool) -> None:
    """Refuses a save file that exists or cannot be made, before a model is loaded.

    Raises:
        InputError: with what to do instead.
    """
    if path.is_dir():
        raise InputError(f"the save file {path} is a directory", "give the name of a file")
    if path.exists() and path.stat().st_size and path.is_file() and not overwrite:
        raise InputError(f"the save file {path} exists", "give another name, or --overwrite")
    parent = path.parent
    if not parent.is_dir():
        raise InputError(f"the directory of the save file, {parent}, does not exist", "make it first")
    if not os.access(path if path.exists() else parent, os.W_OK):
        raise InputError(f"the save file {path} cannot be written: permission denied")


def _open_new(path: Path, overwrite: bool) -> TextIO:
    check_writable(path, overwrite)
    try:
        return path.open("w", encoding="utf-8")
    except OSError as error:
        raise InputError(f"the save file {path} cannot be written: {error.strerror}") from error


def _append(file: TextIO, line: str) -> None:
    try:
        file.write(line + "\n")
        file.flush()
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            os.fsync(file.fileno())
    except OSError as error:
        raise InferenceError(f"{file.name} cannot be written: {error.strerror}") from error


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
