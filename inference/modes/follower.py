"""The ranks other than rank 0: how rank 0 connects to them, and what they do in every run mode."""

from __future__ import annotations

from contextlib import closing, suppress
from types import ModuleType

from inference.config import InferenceConfig
from inference.context import build_context, check_device
from inference.engine.metrics import RunMetrics
from inference.errors import EXIT_FAILURE
from inference.generation.data_parallel import OPEN, Replica
from inference.generation.model import GenerativeModel, make_encoder
from inference.generation.ranks import LOADING, READY, announce, join_ranks, run_follower, say_stage
from inference.generation.text import TextGenerator
from inference.models.source import ModelSource, resolve
from inference.models.weights.sharding import Pairs
from inference.modes.call import Call
from inference.parallel.rendezvous import NobodyNeededError
from inference.parallel.start import Ranks
from inference.parallel.topology import Topology
from inference.terminal.output import say
from inference.terminal.signals import end


def join_others(config: InferenceConfig, topology: Topology) -> tuple[ModuleType, Ranks | None]:
    """Returns the kernels and the other ranks. If a rank is lost, this process ends as on Ctrl-C: its records are
    complete, and it reports how to resume.
    """
    return join_ranks(config, topology, say, lambda what: end(what, EXIT_FAILURE))


def assist(call: Call) -> None:
    """Runs a rank other than rank 0: computes its part of the model, or answers rows that rank 0 sends. Writes nothing
    but progress.

    Raises:
        PeerLostError: another rank is gone.
    """
    config, topology = call.config, call.topology
    check_device(config)
    announce(topology)
    source = resolve(config)
    pairs = source.pairs(topology.model_rank)
    build_context(config)
    with suppress(NobodyNeededError):
        kernels, ranks = join_others(config, topology)
        assert ranks is not None
        if ranks.topology.is_leader:
            _replicate(source, pairs, kernels, ranks)
        else:
            run_follower(source, pairs, kernels, ranks, say)


def _replicate(source: ModelSource, pairs: Pairs | None, kernels: ModuleType, ranks: Ranks) -> None:
    """Runs another copy of the model: answers rows until rank 0 sends no more."""
    channel = ranks.links.root
    assert channel is not None
    tokenizer, metrics = source.tokenizer(), RunMetrics()
    needs = channel.expect(OPEN).fields
    say_stage(ranks.topology, LOADING)
    model = GenerativeModel(source, pairs, **needs, ranks=ranks, kernels=kernels, say=say)
    say_stage(ranks.topology, READY)
    with closing(model), model.engine(metrics) as engine:
        generation = make_encoder(source, tokenizer).generation
        replica = Replica(channel, TextGenerator(engine, tokenizer), generation, metrics)
        replica.run()
        ranks.links.unwatch()
        replica.say_farewell()
