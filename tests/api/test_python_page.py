"""The blocks of docs/python.md run, one after the other in one process, and print what the page shows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```\n^```text\n(.*?)^```\n", re.MULTILINE | re.DOTALL)


def test_the_page_is_correct():
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = BLOCK.findall(page)
    assert len(blocks) == page.count("```python") == 4
    program = "".join(body for body, _ in blocks)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "".join(shown for _, shown in blocks)
