"""SIGKILL at any moment, then --resume: each row exactly once, and the same text as one clean run."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from toy_job import toy_job

from inference.errors import InferenceError
from inference.jobs.save_file import sidecar_of

ROOT = Path(__file__).parents[2]
MOMENTS = 50
# What differs from run to run.
TIMING = ("ttft_seconds", "total_seconds", "cached_tokens")


def records(path: Path) -> list[dict[str, Any]]:
    """The lines of a save file, each of which must be whole."""
    data = path.read_bytes()
    assert data.endswith(b"\n")
    return [json.loads(line) for line in data.splitlines()]


def texts(path: Path) -> dict[int, dict[str, Any]]:
    """What each row has, times aside; no row may be there twice."""
    found = records(path)
    rows = {row["row"]: {key: value for key, value in row.items() if key not in TIMING} for row in found}
    assert len(rows) == len(found), "a row is there twice"
    return rows


def write_rows(path: Path, number: int) -> str:
    """Rows of unequal length with settings of their own, and some that are bad."""
    chance = random.Random(number)
    lines = []
    for i in range(number):
        row: dict[str, Any] = {"custom_id": f"r{i}", "prompt": f"row {i} " + "x" * chance.randrange(40)}
        row |= {"max_new_tokens": chance.randrange(1, 30), "seed": i, "do_sample": i % 3 == 0}
        lines.append("{" if i % 17 == 5 else json.dumps(row | ({"custom_id": "r1"} if i % 13 == 8 else {})))
    path.write_text("\n".join(lines))
    return str(path)


class Server:
    """Starts jobs, each in a process of its own."""

    def __init__(self) -> None:
        words = [sys.executable, str(Path(__file__).with_name("toy_job.py")), "--serve"]
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, kill_after: float | None, **job: Any) -> int:
        """Runs a job, and kills it after so many seconds; how it ended."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        child = int(self.process.stdout.readline())
        if kill_after is not None:
            time.sleep(kill_after)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    # It has started, and what comes takes as long as it takes.
    server.run(None, values=["a"], save=None)
    yield server
    server.process.stdin.close()
    assert server.process.wait(60) == 0


@pytest.mark.parametrize("ordered", [False, True])
def test_random_moments(tmp_path: Path, server: Server, ordered: bool) -> None:
    source, clean, out = write_rows(tmp_path / "in.jsonl", 80), tmp_path / "clean.jsonl", tmp_path / "out.jsonl"
    job = {"values": [source], "ordered": ordered}
    started = time.perf_counter()
    assert server.run(None, save=str(clean), **job) == 0
    whole = time.perf_counter() - started
    expected = texts(clean)
    assert len(expected) == 80
    chance, killed, finished, broken = random.Random(7), 0, 0, 0
    while killed < MOMENTS // 2:
        # Short ones find the file being made, long ones the last rows.
        ended = server.run(chance.random() ** 2 * whole, save=str(out), resume=True, **job)
        if ended == -signal.SIGKILL:
            killed += 1
            broken += out.exists() and 0 < len(out.read_bytes().splitlines()) < 80
        else:
            assert ended == 0
        if ended == 0 or killed == MOMENTS // 2:
            assert server.run(None, save=str(out), resume=True, **job) == 0
            assert texts(out) == expected
            assert not ordered or [row["row"] for row in records(out)] == list(range(80))
            finished += 1
            out.unlink()
            sidecar_of(out).unlink()
    assert finished and broken >= 3, "too few of the moments were in the middle"
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "clean.jsonl", "clean.jsonl.job"}


@pytest.mark.parametrize("ordered", [False, True])
def test_rows_that_failed_are_run_again(tmp_path: Path, server: Server, ordered: bool) -> None:
    """Each has one record in the end, and nothing is lost if a run is killed on the way."""
    source, whole, out = write_rows(tmp_path / "in.jsonl", 60), tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    toy_job([source], str(whole), ordered=ordered)
    expected = texts(whole)
    outcome = toy_job([source], str(out), ordered=ordered, broken="3")
    before = out.read_bytes()
    assert outcome.failed > sum(row["error"] is not None for row in expected.values())
    started = time.perf_counter()
    assert server.run(None, values=[source], save=str(out), retry=True, ordered=ordered) == 0
    took = time.perf_counter() - started
    assert texts(out) == expected
    places = [row["row"] for row in map(json.loads, before.splitlines())]
    assert [row["row"] for row in records(out)] == places
    chance, tries, broken = random.Random(3), 0, 0
    while broken < 3:
        tries += 1
        assert tries < 60, "too few of the moments were in the middle"
        out.write_bytes(before)
        ended = server.run(chance.random() * took, values=[source], save=str(out), retry=True, ordered=ordered)
        found = {row["row"]: row for row in records(out)}
        broken += len(before) < out.stat().st_size and len(records(out)) > 60
        assert len(found) == 60 and ended in (0, -signal.SIGKILL)
        # Without the flag what has a record stays; the file has each row once again.
        toy_job([source], str(out), resume=True, ordered=ordered)
        kept = {row: {k: v for k, v in record.items() if k not in TIMING} for row, record in found.items()}
        assert texts(out) == kept and [row["row"] for row in records(out)] == places
        toy_job([source], str(out), retry=True, ordered=ordered)
        assert texts(out) == expected and [row["row"] for row in records(out)] == places
    assert {path.name for path in tmp_path.iterdir()} == {
        *("in.jsonl", "whole.jsonl", "whole.jsonl.job", "out.jsonl", "out.jsonl.job")
    }


def test_an_unordered_file_is_sorted(tmp_path: Path) -> None:
    source, out = write_rows(tmp_path / "in.jsonl", 40), tmp_path / "out.jsonl"
    toy_job([source], str(out))
    before = texts(out)
    assert [row["row"] for row in records(out)] != sorted(before)
    out.chmod(0o640)
    (tmp_path / "link.jsonl").symlink_to(out)
    (tmp_path / "link.jsonl.job").symlink_to(sidecar_of(out))
    toy_job([source], str(tmp_path / "link.jsonl"), resume=True, ordered=True)
    assert [row["row"] for row in records(out)] == sorted(before) and texts(out) == before
    assert out.stat().st_mode & 0o777 == 0o640 and (tmp_path / "link.jsonl").is_symlink()


def test_a_write_may_fail_at_any_byte(tmp_path: Path) -> None:
    """The file cut off after any byte, also with a hole of zeros where the disk lost what came after."""
    source, out = write_rows(tmp_path / "in.jsonl", 6), tmp_path / "out.jsonl"
    toy_job([source], str(out))
    expected, whole = texts(out), out.read_bytes()
    places = [*range(0, len(whole), 29), *(i + d for i, c in enumerate(whole) if c == 10 for d in (-1, 0, 1, 2))]
    for place in sorted(set(places)):
        out.write_bytes(whole[:place] + b"\0" * (place % 3))
        toy_job([source], str(out), resume=True)
        assert texts(out) == expected, place


def test_a_finished_job_has_nothing_to_do(tmp_path: Path) -> None:
    source, out = write_rows(tmp_path / "in.jsonl", 20), tmp_path / "out.jsonl"
    toy_job([source], str(out))
    before, loaded = out.read_bytes(), []
    assert toy_job([source], str(out), resume=True, loaded=loaded).rows == 0
    assert out.read_bytes() == before and loaded == []
    # Rows that were added since are done.
    with (tmp_path / "in.jsonl").open("a") as file:
        file.write('\n{"prompt": "new", "custom_id": "new"}\n{"prompt": "again", "custom_id": "r3"}\n')
    assert toy_job([source], str(out), resume=True).rows == 2
    rows = texts(out)
    assert len(rows) == 22 and rows[20]["custom_id"] == "new" and out.read_bytes().startswith(before)
    # A name that a row of the earlier run has.
    assert rows[21]["error"]["type"] == "duplicate_id"


class TestRefused:
    @pytest.fixture
    def done(self, tmp_path: Path) -> tuple[str, Path]:
        source, out = write_rows(tmp_path / "in.jsonl", 4), tmp_path / "out.jsonl"
        toy_job([source], str(out))
        return source, out

    @staticmethod
    def refused(done: tuple[str, Path], message: str, **job: Any) -> None:
        source, out = done
        before = out.read_bytes()
        with pytest.raises(InferenceError, match=message) as caught:
            toy_job([source], str(out), **{"resume": True, **job})
        assert caught.value.exit_code == 2 and out.read_bytes() == before

    def test_other_settings(self, done: tuple[str, Path]) -> None:
        self.refused(done, "started with max_new_tokens 12, but it is 13 now; .*--overwrite", max_new_tokens=13)

    def test_an_existing_file(self, done: tuple[str, Path]) -> None:
        self.refused(done, "exists; give another name, or --overwrite, or --resume to continue", resume=False)
        toy_job([done[0]], str(done[1]), overwrite=True, max_new_tokens=1)
        assert max(row["completion_tokens"] or 0 for row in records(done[1])) >= 1

    def test_no_sidecar(self, done: tuple[str, Path]) -> None:
        sidecar_of(done[1]).unlink()
        self.refused(done, r"without .*out\.jsonl\.job, which is missing")
        sidecar_of(done[1]).write_text("{")
        self.refused(done, "out.jsonl.job cannot be read")

    def test_a_damaged_line_in_the_middle(self, done: tuple[str, Path]) -> None:
        lines = done[1].read_bytes().splitlines(keepends=True)
        done[1].write_bytes(lines[0] + b"{}\n" + b"".join(lines[1:]))
        self.refused(done, "out.jsonl:2 is not a record of this job")
        done[1].write_bytes(lines[0] + lines[0] + lines[1])
        self.refused(done, "out.jsonl:2: row \\d is there twice")

    def test_text_output_cannot_be_resumed(self, done: tuple[str, Path]) -> None:
        self.refused(done, "--resume needs a save file of records", form="text")

    def test_two_runs_at_once(self, done: tuple[str, Path]) -> None:
        import fcntl

        with done[1].open("a") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            self.refused(done, "another run is writing")
            self.refused(done, "another run is writing", resume=False, overwrite=True)
