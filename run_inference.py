#!/usr/bin/env python3
"""The command line of the project; `inference.cli` is all of it."""

import sys

from inference.cli import main

if __name__ == "__main__":
    sys.exit(main())
