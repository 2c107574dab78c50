"""LLM inference on MindSpore, driven by one YAML file.

The names below are MindFormers' own, and `LLM`. They are imported when they are used, so that `import inference` costs
nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "AutoConfig": "inference.api.auto",
    "AutoModel": "inference.api.auto",
    "AutoTokenizer": "inference.api.auto",
    "BaseStreamer": "inference.generation.streamers",
    "GenerationConfig": "inference.config",
    "InferenceError": "inference.errors",
    "LLM": "inference.api.llm",
    "TextIteratorStreamer": "inference.generation.streamers",
    "TextStreamer": "inference.generation.streamers",
    "build_context": "inference.context",
    "load_config": "inference.config",
    "pipeline": "inference.api.pipeline",
}

if TYPE_CHECKING:
    from inference.api.auto import AutoConfig, AutoModel, AutoTokenizer
    from inference.api.llm import LLM
    from inference.api.pipeline import pipeline
    from inference.config import GenerationConfig, load_config
    from inference.context import build_context
    from inference.errors import InferenceError
    from inference.generation.streamers import BaseStreamer, TextIteratorStreamer, TextStreamer

__all__ = [
    "AutoConfig",
    "AutoModel",
    "AutoTokenizer",
    "BaseStreamer",
    "GenerationConfig",
    "InferenceError",
    "LLM",
    "TextIteratorStreamer",
    "TextStreamer",
    "build_context",
    "load_config",
    "pipeline",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'inference' has no attribute '{name}'")
    value = getattr(import_module(_HOMES[name]), name)
    # Kept, because importing the submodule `pipeline` would otherwise hide the function of that name.
    globals()[name] = value
    return value
