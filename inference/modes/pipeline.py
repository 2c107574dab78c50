"""`--run_mode pipeline`: rows through Apache Beam, which nothing else imports."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from inference.config import InferenceConfig
from inference.terminal.output import count


def pipeline(config: InferenceConfig, values: Sequence[str], options: Sequence[str], **how: Any) -> int:
    """Answers rows on Apache Beam; `how` is as for `predict`. Returns the exit code."""
    return int(_beam_pipeline().run_pipeline(config, values, options, **how))


def check_other(config: InferenceConfig, values: Sequence[str], options: Sequence[str], overwrite: bool) -> str | None:
    """The same as `check` for a pipeline, or an evaluation on references; what to say of it. None for other runs."""
    if config.run_mode == "pipeline":
        plan, _ = _beam_pipeline().check_pipeline(config, values, options, overwrite)
        models = ", ".join(f"{name}: {model.name}" for name, model in plan.models.items())
        return f"{models}; {count(len(plan.sources), 'input')}; ok"
    if config.run_mode == "validate":
        from inference.validate.command import check_validation

        check_validation(config, values)
        return "ok"
    if config.run_mode == "evaluate":
        from inference.evaluate import command

        if command.is_asked_for(config, values):
            ready = command.check_evaluation(config, values)
            return f"{ready.model.source.name}: {count(len(ready.examples), 'row')} with references; ok"
    return None


def _beam_pipeline() -> Any:
    """The module that runs pipelines; nothing else imports Beam, which warns of packages that nobody asked for."""
    logging.disable(logging.WARNING)
    try:
        from inference.beam.pipeline import run
    finally:
        logging.disable(logging.NOTSET)
    return run
