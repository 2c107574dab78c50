"""What the command line asks of a run mode. Knows nothing about how a run mode does it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from inference.config import InferenceConfig
from inference.config.run_modes import RUN_MODES, RunMode
from inference.parallel.topology import Topology, check_topology


@dataclass(frozen=True)
class Call:
    """One run.

    Args:
        values: prompts, and files of prompts.
        beam_options: flags that are not ours.
        overwrite: replace output that exists.
        resume: continue from output that exists.
        retry_failed: with `resume`, run the failed rows again.
        resume_command: the command that continues this run, shown if it ends early.
    """

    config: InferenceConfig
    values: tuple[str, ...] = ()
    beam_options: tuple[str, ...] = ()
    overwrite: bool = False
    resume: bool = False
    retry_failed: bool = False
    resume_command: str = ""

    @property
    def mode(self) -> RunMode:
        return RUN_MODES[self.config.run_mode]

    @cached_property
    def topology(self) -> Topology:
        """This process's place among the ranks.

        Raises:
            ConfigError: the config does not fit the number of processes.
        """
        return check_topology(self.config)

    @property
    def may_exist(self) -> bool:
        """Whether output that exists is no mistake."""
        return self.overwrite or self.resume
