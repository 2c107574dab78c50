"""`--run_mode validate`: a profile of prompts, and the expectations that they must meet."""

from __future__ import annotations

import os
from collections.abc import Sequence

from inference.config import InferenceConfig
from inference.errors import ConfigError
from inference.parallel.topology import WORLD_SIZE


def validate(config: InferenceConfig, values: Sequence[str]) -> int:
    """Validate prompts.

    Returns:
        The exit code: 0, or 4 if an expectation is not met.
    """
    from inference.validate.command import validate as run

    if int(os.environ.get(WORLD_SIZE, 1)) > 1:
        raise ConfigError(f"{config.origin('run_mode')}: validate runs in one process", "start it without the launcher")
    return run(config, values)
