"""The run modes: one table from which everything that depends on a run mode is derived.

Knows what each mode accepts; knows nothing about its implementation, which is in the module `inference.modes.<name>`.
To add a mode, add its row here and that module, with `run(call)` and `check(call)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class RunMode:
    """One run mode.

    Args:
        name: its value of `--run_mode`.
        help: what it does, as the end of a sentence that begins with its name.
        processes: "replicas" for several copies of the model, each on one or more ranks, "model" for the ranks of one
            copy, "one" for a single process.
        takes_prompts: whether it reads `--predict_data`.
        resumable: whether `--resume` continues an earlier run.
        retries_rows: whether `--retry_failed` repeats the failed rows of an earlier run.
        takes_beam_options: whether unknown flags are passed on to Beam.
        on_mindformers: whether it works with MindFormers' own networks.
        loads_model: whether it computes with a model in this process.
        works_for_all_ranks: whether its single process does the work of all ranks that the config asks for.
    """

    name: str
    help: str
    processes: Literal["replicas", "model", "one"] = "model"
    takes_prompts: bool = True
    resumable: bool = False
    retries_rows: bool = False
    takes_beam_options: bool = False
    on_mindformers: bool = False
    loads_model: bool = True
    works_for_all_ranks: bool = False


_ROWS = (
    RunMode(
        "predict",
        "answers prompts",
        processes="replicas",
        resumable=True,
        retries_rows=True,
        on_mindformers=True,
    ),
    RunMode("evaluate", "measures a model"),
    RunMode("validate", "profiles prompts", processes="one", loads_model=False),
    RunMode("convert", "packs weights", processes="one", takes_prompts=False, works_for_all_ranks=True),
    RunMode(
        "pipeline",
        "answers rows on Beam, Ray or Spark",
        processes="one",
        resumable=True,
        takes_beam_options=True,
        loads_model=False,
    ),
    RunMode("serve", "answers requests over HTTP", takes_prompts=False),
    RunMode("chat", "talks in the terminal", processes="one", takes_prompts=False),
)
RUN_MODES: dict[str, RunMode] = {mode.name: mode for mode in _ROWS}
