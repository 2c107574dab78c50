"""Read checkpoint files (safetensors, MindSpore .ckpt, GGUF) as tensors by name. Knows nothing about models."""
