#!/usr/bin/env python3
"""Kills a batch job at random moments, resumes it, and compares its records with those of an undisturbed run.

    python scripts/chaos.py --rounds 20 -- python run_inference.py --config demo --predict_data prompts.jsonl \
        --save_file {save_file} --resume
    python scripts/chaos.py --rounds 20 -- bash scripts/launcher.sh "python run_inference.py --config demo \
        --use_parallel True --predict_data prompts.jsonl --save_file {save_file} --resume" 2

`{save_file}` stands for the file that the job writes. The seed determines the moment, the target, which is the whole
process group or one of its processes (such as a rank), and the signal: SIGKILL, SIGTERM or SIGINT. Two of three moments
are while the job writes records, the others at any time from its start. Exit code 1 if a record is lost, duplicated or
changed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Fields that differ from run to run.
RUN_KEYS = ("ttft_seconds", "total_seconds", "cached_tokens")
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# Seconds within which all processes of a killed job must have ended.
DOWN = 20.0


class ChaosError(Exception):
    """A job failed, or lost, duplicated or changed a record."""


@dataclass(frozen=True)
class Times:
    """How long an undisturbed job takes until its first record and until its end, in seconds."""

    first: float
    end: float


@dataclass(frozen=True)
class Round:
    """The outcome of a round: how often the job was killed, and how often that was before it finished."""

    kills: int
    in_the_middle: int


def read_records(path: Path) -> dict[int, dict[str, Any]]:
    """Read the records by row, without the fields that differ from run to run.

    Raises:
        ChaosError: a record is incomplete, or a row appears twice.
    """
    data = path.read_bytes()
    if not data.endswith(b"\n"):
        raise ChaosError(f"{path} ends in half a record")
    rows: dict[int, dict[str, Any]] = {}
    for line in data.splitlines():
        record = {key: value for key, value in json.loads(line).items() if key not in RUN_KEYS}
        if record["row"] in rows:
            raise ChaosError(f"{path}: row {record['row']} is there twice")
        rows[record["row"]] = record
    return rows


class Job:
    """The command, running in its own process group."""

    def __init__(self, command: Sequence[str], save_file: Path):
        words = [word.replace("{save_file}", str(save_file)) for word in command]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the process
        self.process = subprocess.Popen(words, stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True)

    def wait(self) -> int:
        """Wait for the job and return its exit code."""
        return self.process.wait()

    def kill(self, chance: random.Random) -> str:
        """Send a signal to the group or one of its processes; return a description.

        Raises:
            ChaosError: a process still runs `DOWN` seconds later.
        """
        group, number = self.process.pid, chance.choice(SIGNALS)
        members = processes_of(group)
        victim = chance.choice(members) if members and chance.random() < 0.5 else None
        with contextlib.suppress(ProcessLookupError):
            if victim is None:
                os.killpg(group, number)
            else:
                os.kill(victim, number)
        what = f"{signal.Signals(number).name} to {'all' if victim is None else 'one of ' + str(len(members))}"
        limit = time.monotonic() + DOWN
        while processes_of(group):
            self.process.poll()
            if time.monotonic() > limit:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(group, signal.SIGKILL)
                raise ChaosError(f"{what}: processes {processes_of(group)} are left after {DOWN:.0f} s")
            time.sleep(0.01)
        self.process.wait()
        return what

    def output(self) -> str:
        """Return the end of its output."""
        self._log.seek(0)
        return self._log.read()[-2000:].decode("utf-8", "replace")


def processes_of(group: int) -> list[int]:
    """Return the live processes of a session (Linux: proc(5), fields 3 and 6 of stat)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
            if int(session) == group and state not in "ZX":
                found.append(int(stat.parent.name))
    return sorted(found)


def count_records(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for_record(job: Job, save_file: Path, before: int) -> None:
    """Wait until a job has written a record more than `before`, or has ended."""
    while job.process.poll() is None and count_records(save_file) <= before:
        time.sleep(0.005)


def run_to_end(command: Sequence[str], save_file: Path) -> Times:
    """Run the job undisturbed; return the time that it took.

    Raises:
        ChaosError: it failed. Failed rows (exit code 3) are part of the result.
    """
    started = time.monotonic()
    job = Job(command, save_file)
    wait_for_record(job, save_file, count_records(save_file))
    first = time.monotonic() - started
    code = job.wait()
    if code not in (0, 3):
        raise ChaosError(f"the job ended with exit code {code}:\n{job.output()}")
    return Times(first, time.monotonic() - started)


def one_round(
    command: Sequence[str], save_file: Path, expected: dict[int, dict[str, Any]], times: Times, chance: random.Random
) -> Round:
    """Kill a job several times, let it finish, and compare the records.

    Raises:
        ChaosError: a record is lost, duplicated or changed.
    """
    middle = 0
    kills = chance.randint(1, 4)
    for _ in range(kills):
        before = count_records(save_file)
        job = Job(command, save_file)
        is_writing = chance.random() < 2 / 3
        if is_writing:
            wait_for_record(job, save_file, before)
        # A job that is killed several times still has rows left for the last.
        with contextlib.suppress(subprocess.TimeoutExpired):
            job.process.wait(chance.random() * ((times.end - times.first) / kills if is_writing else times.end))
        if job.process.poll() is None:
            job.kill(chance)
        middle += 0 < count_records(save_file) < len(expected)
    run_to_end(command, save_file)
    found = read_records(save_file)
    wrong = sorted(row for row in {*found, *expected} if found.get(row) != expected.get(row))
    if wrong:
        raise ChaosError(f"{save_file}: rows {wrong[:10]} are lost or changed ({len(wrong)} of {len(expected)})")
    return Round(kills, middle)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="jobs to kill (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and signals (default 0)")
    parser.add_argument("command", nargs="+", help="the job, with {save_file} and --resume")
    given = parser.parse_args(arguments)
    chance = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as place:
        try:
            clean = Path(place) / "clean.jsonl"
            times = run_to_end(given.command, clean)
            expected = read_records(clean)
            total = Round(0, 0)
            for number in range(given.rounds):
                ended = one_round(given.command, Path(place) / f"{number}.jsonl", expected, times, chance)
                total = Round(total.kills + ended.kills, total.in_the_middle + ended.in_the_middle)
        except ChaosError as error:
            print(f"seed {given.seed}: {error}", file=sys.stderr)
            return 1
    print(
        f"{given.rounds} jobs of {len(expected)} rows, {total.kills} kills, {total.in_the_middle} of them midway: "
        "every row once and as in a run in peace"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
