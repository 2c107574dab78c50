"""`--run_mode validate`: profiles prompts and checks them against expectations."""

from __future__ import annotations

from inference.modes.call import Call
from inference.terminal.output import count


def run(call: Call) -> int:
    """Validates prompts.

    Returns:
        The exit code: 0, or 4 if an expectation is not met.
    """
    from inference.validate.command import validate

    return validate(call.config, call.values)


def check(call: Call) -> str:
    from inference.validate.command import check_validation

    check_validation(call.config, call.values)
    return f"{count(len(call.values), 'input')}; ok"
