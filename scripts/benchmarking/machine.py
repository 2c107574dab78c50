"""The machine's peak rates, measured in a separate process so that no other process's memory figures include it."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("machine.cpp")
COMPILERS = (os.environ.get("CXX", ""), "c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-pthread")
# Far larger than any cache.
READ_BYTES, PASSES = 1 << 30, 8


class MachineError(Exception):
    """The machine cannot be measured; the message states the reason."""


@dataclass(frozen=True)
class Machine:
    """The best of several passes.

    Args:
        bandwidth: bytes per second that all threads together read.
        flops: float32 operations per second of all threads; a multiply-add counts as two.
    """

    bandwidth: float
    flops: float


def build(work: Path) -> Path:
    """Build the program, once per version of its source, and return its path.

    Raises:
        MachineError: there is no compiler, or it fails.
    """
    key = hashlib.sha256(SOURCE.read_bytes() + " ".join(FLAGS).encode()).hexdigest()[:12]
    program = work / f"machine-{key}"
    if program.exists():
        return program
    compiler = next((found for name in COMPILERS if name and (found := shutil.which(name))), None)
    if compiler is None:
        raise MachineError("there is no C++ compiler")
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        made = Path(scratch) / "machine"
        done = subprocess.run([compiler, *FLAGS, str(SOURCE), "-o", str(made)], capture_output=True, text=True)
        if done.returncode:
            raise MachineError(f"{compiler} fails: {(done.stderr.strip() or 'no message').splitlines()[0]}")
        made.replace(program)
    return program


def measure(program: Path, threads: int, read_bytes: int = READ_BYTES, passes: int = PASSES) -> Machine:
    """Run the built program."""
    command = [str(program), str(threads), str(read_bytes), str(passes)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    figures = [(kind, float(value)) for kind, value in (line.split() for line in lines)]
    return Machine(*(max(value for kind, value in figures if kind == wanted) for wanted in ("read", "multiply")))


def name() -> str:
    """Return the processor's name and the number of cores that this process may use."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown processor")
    return f"{model}, {len(os.sched_getaffinity(0))} cores"
