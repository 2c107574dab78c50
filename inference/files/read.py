"""Opens files that a user named: regular files only, and JSON objects, with errors that name the path.

Reading a FIFO or a device could block forever or never end, so both are rejected before they are opened.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from inference.errors import CheckpointError, ConfigError, InferenceError, reason_of

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def exists(path: Path) -> bool:
    """Returns whether a path exists; False for a name that no file system accepts."""
    return os.path.exists(path)  # noqa: PTH110  (Path.exists raises OSError for a name that is too long)


def is_file(path: Path) -> bool:
    """Returns whether a path is a regular file; False for a name that no file system accepts."""
    return os.path.isfile(path)  # noqa: PTH113


def check_regular(path: Path, error: type[InferenceError] = CheckpointError) -> os.stat_result:
    """Checks that a path is a regular file, following links; returns its status.

    Raises:
        error: the path does not exist, or is a directory, a named pipe, a socket or a device.
    """
    try:
        state = path.stat()
    except (OSError, ValueError) as problem:
        raise error(f"{path}: cannot be read ({reason_of(problem)})") from problem
    if not stat.S_ISREG(state.st_mode):
        kind = next((name for test, name in _KINDS if test(state.st_mode)), "no regular file")
        raise error(f"{path} is {kind}", "it must be a regular file")
    return state


def read_text(path: Path, error: type[InferenceError] = ConfigError) -> str:
    """Reads a regular file as UTF-8, without the byte order mark that some editors add.

    Raises:
        error: the file cannot be read, or is not UTF-8.
    """
    check_regular(path, error)
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as problem:
        raise error(f"{path}: cannot be read ({problem.strerror})") from problem
    except ValueError as problem:
        raise error(f"{path} is not UTF-8 text ({problem})", "save it in UTF-8") from problem


def read_json_object(path: Path, error: type[InferenceError] = ConfigError) -> dict[str, Any]:
    """Reads the object in a JSON file.

    Raises:
        error: the file cannot be read, is not JSON, is nested too deeply, or is not an object.
    """
    text = read_text(path, error)
    try:
        values = json.loads(text)
    except RecursionError as problem:
        raise error(f"{path} is not valid JSON: it is nested too deeply") from problem
    except ValueError as problem:
        raise error(f"{path} is not valid JSON: {problem}") from problem
    if not isinstance(values, dict):
        raise error(f"{path} holds a {type(values).__name__}", "it must hold a JSON object")
    return values
