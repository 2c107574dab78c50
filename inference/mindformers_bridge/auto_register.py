"""Registers our classes in run_mindformer.py, given this file's directory as `--register_path`. MindFormers copies and
imports this file if a YAML names one of its classes, as in `model.model_config.auto_register:
auto_register.InferenceModelConfig`.
"""

from inference.mindformers_bridge import register
from inference.mindformers_bridge.network import InferenceForCausalLM, InferenceModelConfig

register(replace=True)

__all__ = ["InferenceForCausalLM", "InferenceModelConfig"]
