"""A process among the ranks of a run: how it joins the others, and what it does where it does not lead.

All ranks but the first say on standard error, which is their log, who they are and how far: where one is killed, stands
still or has to be looked at, its last line tells the stage, and its first the process.
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
    """Says which rank this process is, as its first words."""
    part = f"part {topology.model_rank + 1} of {topology.model_parallel}"
    copy = f", copy {topology.replica + 1} of {topology.data_parallel}" if topology.data_parallel > 1 else ""
    say_stage(topology, f"process {os.getpid()} on {socket.gethostname()}, {part} of the model{copy}")


def say_stage(topology: Topology, stage: str) -> None:
    """Says how far this rank is. Rank 0 says what one process would, and so nothing here."""
    if not topology.is_root:
        print(f"rank {topology.rank} of {topology.world_size}: {stage}", file=sys.stderr, flush=True)


def join_ranks(
    config: InferenceConfig, topology: Topology, say: Say, lost: Callable[[str], None] | None = None
) -> tuple[ModuleType, Ranks | None]:
    """The kernels, and the other ranks of a parallel run, which this waits for; None for a process alone.

    Args:
        topology: this process's place among the ranks.
        say: takes lines for the user.
        lost: what to do when one of them is lost later, instead of a line on stderr; is to end the process.

    Raises:
        PeerLostError: a rank does not come.
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
    """Loads this rank's part of a model and does what the leader says, until that is done.

    Raises:
        PeerLostError: the leader is gone.
    """
    say_stage(ranks.topology, LOADING)
    blocks = follow_on_blocks(ranks.links, lambda needs: share(source, pairs, kernels, ranks, *needs))
    runner = build_runner(source, pairs, kernels, blocks, say, None, ranks)
    say_stage(ranks.topology, COMPILING)
    runner.compile()
    say_stage(ranks.topology, READY)
    follow(runner, ranks.links)


def load(model_class: type[GenerativeModel], config: InferenceConfig, say: Say) -> GenerativeModel:
    """A model for a program of its user's own, which msrun may have started as several ranks.

    Rank 0 gets the model. The others stay here and compute their part, until rank 0 lets go of the model, at the latest
    when its program ends; then they end too, by `SystemExit`. So all that follows in the program is done once.

    Raises:
        ConfigError: several copies of the model, which only run_inference.py shares rows out to.
        InferenceError: it has a model already.
        PeerLostError: another rank is gone.
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
