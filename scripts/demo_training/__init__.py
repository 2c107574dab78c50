"""What `scripts/train_demo.py` trains the demo model on, and with; nothing imports it at run time."""
