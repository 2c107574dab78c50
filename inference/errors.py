"""Errors that a user can act on: what is wrong, what is accepted, what to do next.

Knows exit codes and how to build a message; knows nothing about configs, models or terminals. Every error that the
project raises deliberately derives from `InferenceError`; the command line prints `str(error)` as one line on stderr
and exits with `error.exit_code`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_FAILURE = 1
EXIT_USAGE = 2
# The run completed, or reached --max_errors, and some rows have no answer.
EXIT_ROWS_FAILED = 3
# An evaluation missed a threshold, or a validation an expectation.
EXIT_GATE = 4
# Plus the number of the signal that ended the run, as in a shell.
SIGNALLED = 128


# Longest message in characters; names in a damaged file can have any length.
LONGEST_MESSAGE = 1500


def _shortened(message: str) -> str:
    """Cuts out the middle of a message that is too long."""
    if len(message) <= LONGEST_MESSAGE:
        return message
    return f"{message[: LONGEST_MESSAGE // 2]} ... {message[-LONGEST_MESSAGE // 2 :]}"


class InferenceError(Exception):
    """A runtime failure that is not the user's mistake.

    Args:
        what: what went wrong and where, without a full stop at the end.
        hint: what is accepted or what to do next; appended after a semicolon.
    """

    exit_code = EXIT_FAILURE

    def __init__(self, what: str, hint: str | None = None):
        self.what = what
        self.hint = hint
        message = what if hint is None else f"{what}; {hint}"
        super().__init__(_shortened(" ".join(message.split())))


class UserError(InferenceError):
    """A mistake in user input: a flag, a file, a setting."""

    exit_code = EXIT_USAGE


class ConfigError(UserError):
    """An invalid YAML file, flag or setting."""


class InputError(UserError):
    """An invalid prompt or prompt file."""


class ModelNotFoundError(UserError):
    """A model directory, preset or checkpoint that cannot be found."""


class CheckpointError(UserError):
    """Weights that are damaged or do not fit the config."""


class TokenizerError(UserError):
    """Tokenizer files that are missing or damaged, or a text that they cannot encode."""


class GenerationError(InferenceError):
    """A failure of the model on one prompt; the other prompts continue."""


class DeviceError(UserError):
    """A requested device that does not exist or cannot be used."""


# Out-of-memory messages of MindSpore and the device allocators.
_MEMORY_WORDS = ("out of memory", "bad_alloc", "allocate memory failed", "memory not enough", "cannot allocate memory")


def reason_of(error: BaseException) -> str:
    """Returns what went wrong, without the number and the path that an OSError's text has."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error means that memory ran out."""
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in _MEMORY_WORDS)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Returns the known name closest to `name`, or None if none is close."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """Returns `did you mean 'x'?` for the known name closest to `name`, or None."""
    match = nearest(name, known)
    return f"did you mean '{match}'?" if match else None
