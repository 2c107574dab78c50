"""The command line. `inference.cli:main` is the entry point of the console script."""

from inference.cli.main import main

__all__ = ["main"]
