"""The block of docs/beam.md runs and prints what the page shows."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

pytest.importorskip("apache_beam", reason="needs Apache Beam: pip install 'mindspore-inference[beam]'")

from beam_helpers import ROOT


@pytest.mark.slow
def test_the_page_is_correct():
    page = (ROOT / "docs" / "beam.md").read_text(encoding="utf-8")
    ((program, shown),) = re.findall(r"^```python\n(.*?)^```\n^```text\n(.*?)^```\n", page, re.MULTILINE | re.DOTALL)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == sorted(shown.splitlines())
