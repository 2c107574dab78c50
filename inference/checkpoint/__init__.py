"""Checkpoint files: safetensors, MindSpore .ckpt and GGUF, as tensors by name. Knows nothing of models."""
