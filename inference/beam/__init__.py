"""Apache Beam: RunInference with this project's models.

Names are imported on first use. Only this package imports Beam; the rest of the project runs without it.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from inference.errors import ConfigError

_HOMES = {
    "MindSporeModelHandler": "inference.beam.handlers.mindspore",
    "OpenAIModelHandler": "inference.beam.handlers.openai",
    "RunInference": "inference.beam.transform",
    "run_to_the_end": "inference.beam.serving.retry",
}

if TYPE_CHECKING:
    from inference.beam.handlers.mindspore import MindSporeModelHandler
    from inference.beam.handlers.openai import OpenAIModelHandler
    from inference.beam.serving.retry import run_to_the_end
    from inference.beam.transform import RunInference

__all__ = ["MindSporeModelHandler", "OpenAIModelHandler", "RunInference", "run_to_the_end"]


class BeamMissingError(ConfigError, ImportError):
    """Apache Beam is not installed."""


def require_beam() -> None:
    """Check that Beam is installed, before anything else is imported.

    Raises:
        BeamMissingError: Beam is not installed.
    """
    if find_spec("apache_beam") is None:
        raise BeamMissingError(
            "inference.beam needs Apache Beam, which is not installed", "pip install 'mindspore-inference[beam]'"
        )


require_beam()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'inference.beam' has no attribute '{name}'")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
