"""How many examples a property test tries: its own number in the suite, ten times as many when exploring."""

from __future__ import annotations

from hypothesis import settings

# What a profile of tests/conftest.py says for tests that name no number.
USUAL = 100


def examples(number: int) -> settings:
    """A decorator: try `number` examples, scaled by the profile in use (`--hypothesis-profile explore`)."""
    return settings(max_examples=number * settings().max_examples // USUAL)
