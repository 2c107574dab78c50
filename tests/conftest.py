"""Settings of the whole test suite: slow tests run after the others, MindSpore starts when it is first needed."""

from __future__ import annotations

import pytest
from hypothesis import settings

# Examples differ in time by a lot on a busy machine; pytest-timeout watches over all of a test instead.
settings.register_profile("inference", deadline=None)
settings.load_profile("inference")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


@pytest.fixture(scope="session")
def graph_mode() -> None:
    """MindSpore on the CPU in graph mode. Its import takes seconds, so no test module imports it at its top."""
    from inference.context import build_context

    build_context({"context": {"mode": 0, "device_target": "CPU"}})
