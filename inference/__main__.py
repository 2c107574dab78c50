"""`python -m inference` is the command line."""

from inference.terminal.signals import watch

if __name__ == "__main__":
    # Before all other imports, so that Ctrl-C is answered in one line from the start.
    watch()
    from inference.cli.main import main

    main()
