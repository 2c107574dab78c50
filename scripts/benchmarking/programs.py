"""The measured programs: how to find each, prepare it before the rounds, and call it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parent.parent
ROOT = SCRIPTS.parent
# The sources that determine the layout of converted weights.
LAYOUT_SOURCES = (
    "kernels/formats.py",
    "kernels/cpp/formats.h",
    "models/weights/parameters.py",
    "models/weights/loading.py",
    "models/weights/export.py",
)


@dataclass(frozen=True)
class Peer:
    """A third-party program.

    Args:
        title: its name in tables.
        packages: packages that its interpreter must be able to import.
        dtypes: the weight formats that it supports.
        install: what to install if it is missing.
    """

    title: str
    packages: tuple[str, ...]
    dtypes: tuple[str, ...]
    install: str


PEERS = {
    "llamacpp": Peer("llama.cpp", ("llama_cpp", "gguf"), ("f32", "f16", "q8_0", "q4_0"), "llama-cpp-python and gguf"),
    "hf": Peer("transformers", ("transformers", "torch"), ("float32", "bfloat16"), "transformers and torch"),
}


class CallError(Exception):
    """A process failed; the message is the last line of its stderr."""


@dataclass(frozen=True)
class Call:
    """A process that prints its figures as a JSON line.

    Args:
        prefix: precedes the names of its figures.
        reads: files or directories that it reads, to load into the page cache first.
    """

    python: str
    module: str
    job: Mapping[str, Any]
    prefix: str = ""
    reads: tuple[Path, ...] = ()

    def run(self) -> dict[str, Any]:
        """Run the process and return its figures.

        Raises:
            CallError: it failed.
        """
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        command = [self.python, "-m", self.module, json.dumps(self.job)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=SCRIPTS, env=environment)
        if done.returncode:
            raise CallError((done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1])
        return {
            f"{self.prefix}{name}": value for name, value in (json.loads(done.stdout.splitlines()[-1]) or {}).items()
        }


@dataclass(frozen=True)
class Case:
    """A row of the table: a model, a program and a weight format, and the processes that measure them."""

    model: str
    program: str
    weights: str
    calls: tuple[Call, ...] = field(compare=False)

    def __str__(self) -> str:
        return f"{self.model} {self.program} {self.weights}"


def missing_packages(python: str, packages: tuple[str, ...]) -> list[str]:
    """Return the packages that an interpreter cannot find."""
    program = "import importlib.util, sys; print(*[p for p in sys.argv[1:] if not importlib.util.find_spec(p)])"
    done = subprocess.run([python, "-c", program, *packages], capture_output=True, text=True)
    return done.stdout.split() if done.returncode == 0 else list(packages)


def installed_peers(names: list[str], pythons: Mapping[str, str], say: Callable[[str], None]) -> list[str]:
    """Return the peers that can be measured; for each other one, report in one line what it lacks."""
    found = []
    for name in names:
        peer, python = PEERS[name], pythons.get(name, sys.executable)
        missing = missing_packages(python, peer.packages)
        if missing:
            say(
                f"{peer.title} is not measured: {python} has no {' and no '.join(missing)}; install {peer.install} "
                f"there, or give --peer-python {name}=PATH"
            )
        else:
            found.append(name)
    return found


def our_case(directory: Path, dtype: str, kernels: str, threads: int, converted: Path | None) -> Case:
    """Return the case of this project on a checkpoint; also measures start-up on `converted` if it is given."""

    def call(action: str, model: Path, prefix: str = "") -> Call:
        job = {"action": action, "model": str(model), "dtype": dtype, "kernels": kernels, "threads": threads}
        return Call(sys.executable, "benchmarking.ours", job, prefix, (model,))

    calls = [call("measure", directory)]
    if converted:
        calls.append(call("startup", converted, "converted_"))
    return Case(directory.name, "ours" if kernels == "native" else "ours, stock operators", dtype, tuple(calls))


def peer_cases(name: str, python: str, directory: Path, work: Path, threads: int) -> Iterator[Case]:
    """Yield the cases of a peer on a checkpoint, one per weight format that it supports."""
    files = work / "gguf"
    for dtype in PEERS[name].dtypes:
        job: dict[str, Any] = {"action": "measure", "model": str(directory), "dtype": dtype, "threads": threads}
        reads = directory
        if name == "llamacpp":
            reads = files / f"{directory.name}-{dtype}.gguf"
            job |= {"file": str(reads), "wide_file": str(files / f"{directory.name}-f32.gguf")}
        yield Case(
            directory.name, PEERS[name].title, dtype, (Call(python, f"benchmarking.peer_{name}", job, "", (reads,)),)
        )


def prepare(case: Case, say: Callable[[str], None]) -> None:
    """Create the file that a peer reads, if it is missing or older than the checkpoint.

    Raises:
        CallError: it cannot be created.
    """
    for call in case.calls:
        if "file" not in call.job:
            continue
        target, source = Path(call.job["file"]), Path(call.job["model"]) / "model.safetensors"
        if target.exists() and target.stat().st_mtime > source.stat().st_mtime:
            continue
        say(f"writing {target}")
        target.parent.mkdir(parents=True, exist_ok=True)
        Call(call.python, call.module, {**call.job, "action": "prepare"}).run()


def convert(directory: Path, dtype: str, work: Path, say: Callable[[str], None]) -> Path:
    """Convert the checkpoint with `--run_mode convert`, once per version of the layout; delete older versions.

    Raises:
        CallError: it cannot be converted.
    """
    sources = b"".join((ROOT / "inference" / name).read_bytes() for name in LAYOUT_SOURCES)
    place = work / "converted" / hashlib.sha256(sources).hexdigest()[:12]
    target = place / f"{directory.name}-{dtype}"
    if (target / "config.json").exists():
        return target
    for other in (work / "converted").glob(f"*/{target.name}"):
        shutil.rmtree(other)
    say(f"converting {directory.name} to {dtype}")
    command = [sys.executable, str(ROOT / "run_inference.py"), "--config", str(ROOT / "configs/base/predict_base.yaml")]
    command += ["--run_mode", "convert", "--pretrained_model_dir", str(directory), "--output_dir", str(place)]
    done = subprocess.run([*command, "--options", f"engine.weight_dtype={dtype}"], capture_output=True, text=True)
    if done.returncode:
        raise CallError((done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1])
    return target
