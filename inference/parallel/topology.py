"""Which process of a parallel run this is: rank, replica, and place within the replica.

Knows the environment that msrun sets, and arithmetic; knows nothing about models or sockets. Never imports mindspore.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from inference.config import InferenceConfig
from inference.config.run_modes import RUN_MODES
from inference.errors import ConfigError

# The variables that msrun sets for each process that it starts (mindspore/parallel/cluster/process_entity).
ROLE, WORKERS, RANK, SCHEDULER_HOST, SCHEDULER_PORT, PATIENCE = (
    "MS_ROLE",
    "MS_WORKER_NUM",
    "RANK_ID",
    "MS_SCHED_HOST",
    "MS_SCHED_PORT",
    "MS_TOPO_TIMEOUT",
)
WORKER, SCHEDULER = "MS_WORKER", "MS_SCHED"
# Set by the launcher for another project's program, which also gets MindSpore's own scheduler: the meeting point of
# ranks that do not need that scheduler, as HOST:PORT, or `mindspore` if there is none.
MEETING = "INFERENCE_MEETING"
# Set by the launcher for the check before it starts ranks: the number of ranks to come.
WORLD_SIZE = "INFERENCE_WORLD_SIZE"


@dataclass(frozen=True)
class Topology:
    """N ranks: D replicas of the model (data parallel), each shared by M ranks (tensor parallel).

    rank = replica * M + model_rank. Model rank 0 of a replica is its leader, which runs the engine; the leader of
    replica 0 is the root, which reads prompts and writes answers.
    """

    rank: int = 0
    model_parallel: int = 1
    data_parallel: int = 1

    @property
    def world_size(self) -> int:
        return self.model_parallel * self.data_parallel

    @property
    def replica(self) -> int:
        return self.rank // self.model_parallel

    @property
    def model_rank(self) -> int:
        return self.rank % self.model_parallel

    @property
    def is_leader(self) -> bool:
        return self.model_rank == 0

    @property
    def is_root(self) -> bool:
        return self.rank == 0

    @property
    def leader(self) -> int:
        """The leader's rank."""
        return self.rank - self.model_rank

    @property
    def replica_ranks(self) -> range:
        """The ranks that share this rank's replica."""
        return range(self.leader, self.leader + self.model_parallel)

    @property
    def leaders(self) -> range:
        """The leaders of all replicas."""
        return range(0, self.world_size, self.model_parallel)


def is_scheduler(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is the scheduler, through which the ranks find each other."""
    return environment.get(ROLE) == SCHEDULER


def is_worker(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is a rank."""
    return environment.get(ROLE) == WORKER


def scheduler_address(environment: Mapping[str, str] = os.environ) -> tuple[str, int]:
    """Address of the scheduler."""
    return environment[SCHEDULER_HOST], int(environment[SCHEDULER_PORT])


def meeting_address(environment: Mapping[str, str] = os.environ) -> tuple[str, int]:
    """Address where the ranks meet: the scheduler's, unless the launcher sets another."""
    host, _, port = environment.get(MEETING, "").rpartition(":")
    return (host, int(port)) if host else scheduler_address(environment)


def patience(environment: Mapping[str, str] = os.environ) -> float:
    """Seconds to wait for all ranks to appear."""
    return float(environment.get(PATIENCE, 600))


def check_topology(config: InferenceConfig, environment: Mapping[str, str] = os.environ) -> Topology:
    """This process's place in the run that a config requests. A process that was not started as a rank is rank 0, even
    when the launcher checks a config for `INFERENCE_WORLD_SIZE` ranks.

    Raises:
        ConfigError: the number of processes is wrong, or the config requests an unsupported kind of parallelism.
    """
    asked = config.parallel_config
    count = world_size(environment)
    if not config.use_parallel:
        if count > 1:
            raise ConfigError(
                f"{config.origin('use_parallel')}: use_parallel is False, {count} processes were started",
                "give --use_parallel True, or in a program use_parallel=True",
            )
        return Topology()
    if asked.pipeline_stage > 1:
        raise ConfigError(
            f"{config.origin('parallel_config.pipeline_stage')}: pipeline_stage is {asked.pipeline_stage}, and "
            "pipeline parallelism is not supported",
            "give parallel_config.pipeline_stage 1 and split layers with parallel_config.model_parallel",
        )
    model, data = asked.model_parallel, asked.data_parallel
    if config.origin("parallel_config.model_parallel") == "default" and count % data == 0:
        model = count // data
    if model * data != count:
        raise ConfigError(
            f"{origin_of_split(config)}: data_parallel {data} x model_parallel {model} needs {model * data} processes, "
            f"{count} {'was' if count == 1 else 'were'} started",
            _what_works(model, data, count),
        )
    return Topology(_rank(environment, count), model, data)


def origin_of_split(config: InferenceConfig) -> str:
    """The setting that determines how many ranks share the model: the key itself, or `use_parallel`, which takes
    all ranks.
    """
    where = config.origin("parallel_config.model_parallel")
    return config.origin("use_parallel") if where == "default" else where


def ranks_of_model(config: InferenceConfig) -> int:
    """Number of ranks that share the model. A conversion is one process, and writes for as many ranks as the config
    requests.
    """
    if not RUN_MODES[config.run_mode].works_for_all_ranks:
        return check_topology(config).model_parallel
    asked = config.use_parallel or config.origin("parallel_config.model_parallel").startswith("--")
    return config.parallel_config.model_parallel if asked else 1


def world_size(environment: Mapping[str, str] = os.environ) -> int:
    """The number of processes that were started, or will be if the launcher only checks a config."""
    given = environment.get(WORKERS) if is_worker(environment) or is_scheduler(environment) else None
    return int(given or environment.get(WORLD_SIZE) or 1)


def _rank(environment: Mapping[str, str], count: int) -> int:
    if not is_worker(environment):
        return 0
    rank = environment.get(RANK, "")
    if not rank.isdigit() or int(rank) >= count:
        raise ConfigError(
            f"the environment says {RANK}={rank or '(nothing)'} for one of {count} ranks",
            "give msrun --node_rank when it starts workers on several nodes",
        )
    return int(rank)


def _what_works(model: int, data: int, count: int) -> str:
    program = Path(sys.argv[0]).name
    words = f"python {program}" if program.endswith(".py") else "python run_inference.py"
    launch = f'bash scripts/launcher.sh "{words} ..." {model * data}'
    if count % model == 0:
        return f"give parallel_config.data_parallel {count // model}, or start {model * data}: {launch}"
    if count % data == 0:
        return f"give parallel_config.model_parallel {count // data}, or start {model * data}: {launch}"
    return f"start {model * data}: {launch}"
