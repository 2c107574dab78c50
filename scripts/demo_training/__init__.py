"""Training data and tools of `scripts/train_demo.py`; the package does not import it."""
