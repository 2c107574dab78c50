"""Beam's own tests of RunInference, run against our handler."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("apache_beam", reason="needs Apache Beam: pip install 'mindspore-inference[beam]'")

HERE = Path(__file__).parent


@pytest.mark.slow
def test_they_pass_with_our_handlers_interface():
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    done = subprocess.run(
        [sys.executable, HERE / "beams_own_tests.py", "--quick"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-8000:]
    assert "passed with Beam's RunInference" in done.stdout and "passed with ours" in done.stdout, done.stdout
