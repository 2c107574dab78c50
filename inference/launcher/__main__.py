"""`python -m inference.launcher`, which scripts/launcher.sh runs."""

from inference.launcher.main import main

if __name__ == "__main__":
    main()
