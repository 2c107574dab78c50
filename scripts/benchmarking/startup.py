"""Measures whole processes on the demo model: help, user errors, and the time to a first token by its parts."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from typing import Any

from benchmarking.programs import ROOT, Call

# Parts of `ours`, in order.
PARTS = {
    "python_s": "Python and checks",
    "import_s": "importing MindSpore",
    "load_s": "weights",
    "compile_s": "compiling",
    "first_token_s": "process start to first token",
}


def measure(rounds: int, threads: int) -> list[dict[str, Any]]:
    """Return rows of medians in seconds.

    Raises:
        CallError: the demo model does not run.
    """
    command = [sys.executable, str(ROOT / "run_inference.py")]
    demo = [*command, "--config", str(ROOT / "configs/demo/predict_demo.yaml")]
    commands = {
        "--help": [*command, "--help"],
        "--check": [*demo, "--check"],
        "a mistyped flag": [*demo, "--predict_btach_size", "2"],
        "an answer of one token, whole process": [*demo, "--predict_data", "Once upon a time", "--max_new_tokens", "1"],
    }
    job = {"action": "startup", "dtype": "auto", "kernels": "native", "threads": threads}
    call = Call(sys.executable, "benchmarking.ours", {**job, "model": str(ROOT / "inference/demo")})
    times: dict[str, list[float]] = {name: [] for name in (*commands, *PARTS.values())}
    for _ in range(rounds):
        for name, arguments in commands.items():
            started = time.perf_counter()
            subprocess.run(arguments, capture_output=True, check=False)
            times[name].append(time.perf_counter() - started)
        figures = call.run()
        for part, name in PARTS.items():
            times[name].append(figures[part])
    return [{"startup": name, "seconds": statistics.median(values)} for name, values in times.items()]
