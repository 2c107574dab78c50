#!/usr/bin/env python3
"""The command line of the project; `inference.cli.main` is all of it."""

from inference.terminal.signals import watch


def run() -> None:
    # Before all other imports, so that Ctrl-C is answered in one line from the start.
    watch()
    from inference.cli.main import main

    main()


if __name__ == "__main__":
    run()
