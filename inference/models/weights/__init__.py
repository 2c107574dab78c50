"""Load weights from a checkpoint into a network: names, sharding, LoRA, quantized formats."""
