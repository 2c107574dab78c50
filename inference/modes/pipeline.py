"""`--run_mode pipeline`: runs rows through Apache Beam. No other run mode imports Beam."""

from __future__ import annotations

import logging
from typing import Any

from inference.modes.call import Call
from inference.terminal.output import count


def run(call: Call) -> int:
    """Answers rows on Apache Beam.

    Returns:
        The exit code: 0, or 3 if rows failed.
    """
    how = {"overwrite": call.overwrite, "resume": call.resume, "again": call.resume_command}
    return int(_beam_pipeline().run_pipeline(call.config, call.values, call.beam_options, **how))


def check(call: Call) -> str:
    plan, _ = _beam_pipeline().check_pipeline(call.config, call.values, call.beam_options, call.may_exist)
    models = ", ".join(f"{name}: {model.name}" for name, model in plan.models.items())
    return f"{models}; {count(len(plan.sources), 'input')}; ok"


def _beam_pipeline() -> Any:
    """Imports the module that runs pipelines, with logging off: Beam warns about optional packages when imported."""
    logging.disable(logging.WARNING)
    try:
        from inference.beam.pipeline import run
    finally:
        logging.disable(logging.NOTSET)
    return run
