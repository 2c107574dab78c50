"""`scripts/chaos.py`: a short form of it on the toy job, and that it finds a job that loses rows."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOY = ROOT / "tests" / "jobs" / "toy_job.py"
# A job that forgets a row if it is begun anew with something in its file.
FORGETFUL = """
import json, pathlib, sys, time
path = pathlib.Path(sys.argv[1])
start = path.read_bytes().count(b"\\n") + 1 if path.exists() else 0
with path.open("ab", 0) as file:
    for row in range(start, 40):
        file.write(json.dumps({"row": row}).encode() + b"\\n")
        time.sleep(0.01)
"""


def chaos(*words: str, rounds: int, seed: int = 0) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers"), str(ROOT / "tests" / "jobs")])
    given = [sys.executable, str(ROOT / "scripts" / "chaos.py"), "--rounds", str(rounds), "--seed", str(seed), "--"]
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run([*given, *words], capture_output=True, text=True, env=environment, timeout=240)


def test_a_job_keeps_every_row(tmp_path: Path) -> None:
    chance, source = random.Random(5), tmp_path / "in.jsonl"
    rows = [{"prompt": f"row {i}", "max_new_tokens": chance.randint(1, 40), "seed": i} for i in range(150)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = {"values": [str(source)], "save": "{save_file}", "resume": True}
    done = chaos(sys.executable, str(TOY), json.dumps(job), rounds=2)
    assert done.returncode == 0, done.stderr
    assert "2 jobs of 150 rows" in done.stdout and "every row once" in done.stdout


def test_a_job_that_forgets_a_row_is_found() -> None:
    done = chaos(sys.executable, "-c", FORGETFUL, "{save_file}", rounds=3, seed=1)
    assert done.returncode == 1 and "are lost or changed" in done.stderr


@pytest.mark.parametrize("code", ["raise SystemExit(2)", "import sys; open(sys.argv[1], 'w').write('{}')"])
def test_a_failed_job_is_reported(code: str) -> None:
    done = chaos(sys.executable, "-c", code, "{save_file}", rounds=1)
    assert done.returncode == 1 and done.stderr.startswith("seed 0: ")
