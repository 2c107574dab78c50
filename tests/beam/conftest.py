"""The demo model for pipelines in this process, and versions of it on disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

DEMO = Path(__file__).parents[2] / "inference" / "demo"


@pytest.fixture(scope="session")
def demo(graph_mode: None) -> Iterator[Any]:
    """A handler of the demo model, which stays loaded."""
    from inference.beam import MindSporeModelHandler

    handler = MindSporeModelHandler("demo")
    model = handler.load_model()
    yield handler
    del model


@pytest.fixture
def put_version(tmp_path: Path) -> Callable[..., str]:
    """Puts a version of the model into the directory, at once, whole or broken."""

    def put(name: str, broken: bool = False) -> str:
        hidden, target = tmp_path / f".{name}", tmp_path / name
        shutil.copytree(DEMO, hidden)
        weights = hidden / "model.safetensors"
        weights.write_bytes(b"no tensors" if broken else weights.read_bytes())
        hidden.rename(target)
        return str(target)

    return put
