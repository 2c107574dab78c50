"""Models: read a checkpoint's config and weights, and run the network. Models never see text."""
