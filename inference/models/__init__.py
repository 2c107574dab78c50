"""Models: what a checkpoint's files say, and the network that computes with them. Models never see text."""
