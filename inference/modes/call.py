"""A call of a run mode by the command line. Knows nothing about how run modes work."""

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
        values: prompts and prompt files.
        beam_options: flags that we do not have, for Beam.
        overwrite: replace existing output.
        resume: continue from existing output.
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
        """Whether the output may already exist."""
        return self.overwrite or self.resume
