"""Keeps a program loaded and runs a piece of work on request, so that two programs can take turns.

    python -m benchmarking.turns {"program": "ours", "model": DIR, "dtype": "int4", "threads": 2}

The job is JSON, as for `benchmarking.ours` and `benchmarking.peer_llamacpp`. Prints `ready`; then, for each line
{"rows": 1, "prompt": 128, "new": 64, "name": "turn 1"} of standard input, {"first": seconds, "rate": tokens/s}.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from benchmarking.workload import Program, prompts

# Prompt ids are below this, so every vocabulary contains them.
VOCABULARY = 30000
POSITIONS = 16 * 256


def load(job: dict[str, Any]) -> Program:
    """Load the program of a job."""
    if job["program"] == "ours":
        from benchmarking.ours import Ours

        return Ours(job["model"], job["dtype"], "native", job["threads"], POSITIONS, 16)
    from benchmarking.peer_llamacpp import LlamaCpp

    return LlamaCpp(job["file"], job["threads"])


def main() -> None:
    program = load(json.loads(sys.argv[1]))
    print("ready", flush=True)
    for line in sys.stdin:
        work = json.loads(line)
        run = program.generate(prompts(VOCABULARY, work["rows"], work["prompt"], work["name"]), work["new"])
        print(json.dumps({"first": run.first, "rate": run.rate}), flush=True)


if __name__ == "__main__":
    main()
