"""From config.json to sizes: which families there are, how each spells its config and names its tensors."""
