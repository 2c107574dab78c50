"""Errors that a person can act on: what was wrong, what is accepted, what to do next.

Knows exit codes and how a message is put together; knows nothing about configs, models or terminals. Every
error that the project raises on purpose derives from `InferenceError`; the command line prints `str(error)` as one
line on stderr and exits with `error.exit_code`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_FAILURE = 1
EXIT_USAGE = 2
# The run went to its end, or to --max_errors, and some rows have no answer.
EXIT_ROWS_FAILED = 3
# An evaluation that does not keep its thresholds.
EXIT_GATE = 4
# And the number of the signal that ended the run, as a shell has it.
SIGNALLED = 128


# Characters of a message; a damaged file may have names of any length.
LONGEST_MESSAGE = 1500


def _shortened(message: str) -> str:
    """A message without its middle if it is too long."""
    if len(message) <= LONGEST_MESSAGE:
        return message
    return f"{message[: LONGEST_MESSAGE // 2]} ... {message[-LONGEST_MESSAGE // 2 :]}"


class InferenceError(Exception):
    """A failure at run time that is not the user's mistake.

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
    """A mistake in what the user gave: a flag, a file, a setting."""

    exit_code = EXIT_USAGE


class ConfigError(UserError):
    """A YAML file, a flag or a setting that cannot be used."""


class InputError(UserError):
    """A prompt or a file of prompts that cannot be used."""


class ModelNotFoundError(UserError):
    """A model directory, preset name or checkpoint that is not where it was looked for."""


class CheckpointError(UserError):
    """Weights that are damaged or do not fit the config."""


class TokenizerError(UserError):
    """Tokenizer files that are missing or damaged, or a text that they cannot encode."""


class GenerationError(InferenceError):
    """A prompt that the model failed on, and on it alone: the others go on."""


class DeviceError(UserError):
    """A device that was asked for and is not there."""


# What MindSpore and the devices' allocators say.
_MEMORY_WORDS = ("out of memory", "bad_alloc", "allocate memory failed", "memory not enough", "cannot allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left."""
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in _MEMORY_WORDS)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name closest to `name`, or None when nothing is close."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """`did you mean 'x'?` for the known name closest to `name`, or None."""
    match = nearest(name, known)
    return f"did you mean '{match}'?" if match else None
