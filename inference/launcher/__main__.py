"""`python -m inference.launcher`: what scripts/launcher.sh runs."""

from inference.launcher.main import main

if __name__ == "__main__":
    main()
