"""Where mindformers is not installed, what needs it is skipped; the tests' own process never imports it."""

from __future__ import annotations

from importlib.util import find_spec

import pytest


@pytest.fixture(scope="session")
def mindformers() -> None:
    """Skips where it is not there."""
    if find_spec("mindformers") is None:
        pytest.skip("mindformers is not installed (the extra `dev` has it)")
