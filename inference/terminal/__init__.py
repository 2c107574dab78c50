"""Interaction with the terminal: output lines, progress, signals."""
