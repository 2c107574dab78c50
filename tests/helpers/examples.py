"""The number of examples of a property test: its own number in the suite, ten times as many when exploring."""

from __future__ import annotations

from hypothesis import settings

# The profile's number in tests/conftest.py, for tests that do not set one.
USUAL = 100


def examples(number: int) -> settings:
    """Decorator: try `number` examples, scaled by the active profile (`--hypothesis-profile explore`)."""
    return settings(max_examples=number * settings().max_examples // USUAL)
