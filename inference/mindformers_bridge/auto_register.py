"""For run_mindformer.py: `--register_path` is this file's directory. MindFormers copies the file and imports it when a
YAML names one of its classes, as in `model.model_config.auto_register: auto_register.InferenceModelConfig`.
"""

from inference.mindformers_bridge import register
from inference.mindformers_bridge.network import InferenceForCausalLM, InferenceModelConfig

register(replace=True)

__all__ = ["InferenceForCausalLM", "InferenceModelConfig"]
