"""Reads turns and shows answers, interactively at a terminal or line by line through a pipe.

Knows terminals; knows nothing about models.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

# Delimiter of a multi-line turn.
BLOCK = '"""'
DIM, PLAIN = "\x1b[2m", "\x1b[0m"
THINKING = ("<think>", "</think>")


def read_turns(lines: Iterator[str]) -> Iterator[str]:
    """Groups lines into turns: one per line, or one per block between two `\"\"\"`; skips blank lines."""
    for line in lines:
        turn = line.rstrip("\n")
        if turn.lstrip().startswith(BLOCK):
            turn = turn.lstrip().removeprefix(BLOCK)
            while not turn.rstrip().endswith(BLOCK):
                following = next(lines, None)
                if following is None:
                    break
                turn += "\n" + following.rstrip("\n")
            turn = turn.rstrip().removesuffix(BLOCK).strip("\n")
        if turn.strip():
            yield turn.strip()


def piped_lines() -> Iterator[str]:
    """Yields lines of standard input as they arrive."""
    yield from iter(sys.stdin.readline, "")


def typed_lines(commands: Sequence[str]) -> Iterator[str]:
    """Yields typed lines until Ctrl-D, with line editing and completion of commands. Ctrl-C clears a line."""
    session = _session(commands)
    while True:
        try:
            yield from session.prompt("> ").split("\n")
        except KeyboardInterrupt:
            continue
        except EOFError:
            return


def _session(commands: Sequence[str]) -> PromptSession[str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter

    completer = WordCompleter([f"/{name}" for name in commands], sentence=True)
    return PromptSession(completer=completer, complete_while_typing=False)


class AnswerPrinter:
    """Writes an answer as it is generated; dims the model's thinking on a terminal."""

    def __init__(self, file: TextIO, dims: bool):
        self._file, self._dims = file, dims
        self._held = ""
        self._thinks = False

    def write(self, text: str) -> None:
        """Writes text, except for a possible start of a mark at its end."""
        if not self._dims:
            self._put(text)
            return
        self._held += text
        while (mark := THINKING[self._thinks]) in self._held:
            before, _, self._held = self._held.partition(mark)
            self._put(before + (PLAIN if self._thinks else DIM))
            self._thinks = not self._thinks
        # Hold back a suffix that may be the start of the mark.
        kept = next((size for size in range(len(mark) - 1, 0, -1) if mark.startswith(self._held[-size:])), 0)
        kept = min(kept, len(self._held))
        self._put(self._held[: len(self._held) - kept])
        self._held = self._held[len(self._held) - kept :]

    def end(self) -> None:
        """Ends the answer's last line."""
        self._put(self._held + (PLAIN if self._thinks else "") + "\n")
        self._held, self._thinks = "", False

    def _put(self, text: str) -> None:
        self._file.write(text)
        self._file.flush()
