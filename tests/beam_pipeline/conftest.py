"""A directory for pipelines."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("apache_beam")

from pipeline_place import Place


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # Workers that a runner starts inherit what the pipeline sets.
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    return Place(tmp_path)
