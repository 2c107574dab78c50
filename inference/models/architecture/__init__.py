"""Read config.json into sizes: the families, the keys of their configs and the names of their tensors."""
