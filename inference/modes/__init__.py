"""The run modes, independent of the command line: each mode is the module of its name.

A mode's module has `run(call)`, which returns the exit code, and `check(call)`, which loads nothing and returns a
description of what would run. Its row is in `inference.config.run_modes`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Protocol, cast

from inference.modes.call import Call
from inference.modes.check import check_call
from inference.modes.follower import assist

__all__ = ["Call", "check", "run"]


class _Mode(Protocol):
    def run(self, call: Call) -> int: ...

    def check(self, call: Call) -> str: ...


def run(call: Call) -> int:
    """Runs the mode that the config names, or this rank's part of it.

    Returns:
        The exit code.
    """
    check_call(call)
    if call.mode.processes != "one" and not call.topology.is_root:
        assist(call)
        return 0
    return _module(call).run(call)


def check(call: Call) -> str:
    """Finds every mistake that can be found without computing; returns a description of what would run.

    Raises:
        InferenceError: the first mistake.
    """
    check_call(call)
    return _module(call).check(call)


def _module(call: Call) -> _Mode:
    return cast(_Mode, import_module(f"{__name__}.{call.mode.name}"))
