"""A process among the ranks of a run: joins the others, and follows the leader if it is not the leader itself.

All ranks but the first report their process and their progress on standard error, which is their log. If a rank is
killed or hangs, the first line of its log names the process and the last line the stage.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from types import ModuleType

from inference.config import InferenceConfig
from inference.errors import ConfigError
from inference.generation.build import Say, build_runner, choose_kernels, share
from inference.generation.model import GenerativeModel
from inference.models.source import ModelSource, resolve
from inference.models.tensor_parallel import follow, follow_on_blocks
from inference.models.weights.sharding import Pairs
from inference.parallel.start import Ranks, join, threads_per_rank
from inference.parallel.topology import Topology, check_topology

LOADING = "loading its weights"
COMPILING = "compiling"
READY = "ready"


def announce(topology: Topology) -> None:
    """Reports which rank this process is, as the first line of its log."""
    part = f"part {topology.model_rank + 1} of {topology.model_parallel}"
    copy = f", copy {topology.replica + 1} of {topology.data_parallel}" if topology.data_parallel > 1 else ""
    say_stage(topology, f"process {os.getpid()} on {socket.gethostname()}, {part} of the model{copy}")


def say_stage(topology: Topology, stage: str) -> None:
    """Reports the stage of this rank. Rank 0 reports nothing here: its output is that of a single process."""
    if not topology.is_root:
        print(f"rank {topology.rank} of {topology.world_size}: {stage}", file=sys.stderr, flush=True)


def join_ranks(
    config: InferenceConfig, topology: Topology, say: Say, lost: Callable[[str], None] | None = None
) -> tuple[ModuleType, Ranks | None]:
    """Waits for the other ranks of a parallel run; returns the kernels and the ranks, None for a single process.

    Args:
        topology: this process's place among the ranks.
        say: takes lines for the user.
        lost: called if a rank is lost later, instead of printing a line to stderr; must end the process.

    Raises:
        PeerLostError: a rank does not join.
    """
    kernels = choose_kernels(config, say)
    if topology.world_size == 1:
        return kernels, None
    say_stage(topology, "waiting for the others")
    ranks = join(config, topology, kernels.NARROW, lost)
    if kernels.NARROW and config.engine.threads is None:
        from inference.kernels.library import set_threads

        set_threads(threads_per_rank(ranks.links))
    return kernels, ranks


def run_follower(source: ModelSource, pairs: Pairs | None, kernels: ModuleType, ranks: Ranks, say: Say) -> None:
    """Loads this rank's part of a model and runs the leader's commands until the leader ends.

    Raises:
        PeerLostError: the leader was lost.
    """
    say_stage(ranks.topology, LOADING)
    blocks = follow_on_blocks(ranks.links, lambda needs: share(source, pairs, kernels, ranks, *needs))
    runner = build_runner(source, pairs, kernels, blocks, say, None, ranks)
    say_stage(ranks.topology, COMPILING)
    runner.compile()
    say_stage(ranks.topology, READY)
    follow(runner, ranks.links)


def load(model_class: type[GenerativeModel], config: InferenceConfig, say: Say) -> GenerativeModel:
    """Loads a model for a user's own program, which msrun may have started as several ranks.

    Returns the model on rank 0. The other ranks stay in this call and compute their part until rank 0 closes the model
    or its program ends; then they raise `SystemExit`. So only rank 0 runs the rest of the program.

    Raises:
        ConfigError: data_parallel is above 1; only run_inference.py distributes rows over several replicas.
        InferenceError: the program has loaded a model already.
        PeerLostError: another rank was lost.
    """
    topology = check_topology(config)
    if topology.world_size == 1:
        return model_class.from_config(config, say)
    if topology.data_parallel > 1:
        raise ConfigError(
            f"{config.origin('parallel_config.data_parallel')}: a program of your own has one copy of the model",
            "give data_parallel 1 and more model_parallel, or let run_inference.py share the rows out",
        )
    source = resolve(config)
    pairs = source.pairs(topology.model_rank)
    announce(topology)
    kernels, ranks = join_ranks(config, topology, say)
    assert ranks is not None
    if topology.is_leader:
        return model_class(source, pairs, ranks=ranks, kernels=kernels, say=say)
    run_follower(source, pairs, kernels, ranks, say)
    raise SystemExit(0)
