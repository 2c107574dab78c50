"""Connects the ranks of a parallel run, with or without MindSpore's communication.

The native kernels do not need it. Stock operators need MindSpore's collectives: `mccl` on a CPU, `hccl` on Ascend.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from inference.config import InferenceConfig
from inference.errors import ConfigError, InferenceError
from inference.parallel.connections import Links, connect
from inference.parallel.group import Group, mindspore_group, native_group
from inference.parallel.msrun_scheduler import MINDSPORE, is_mindspores
from inference.parallel.rendezvous import Exchange, meet, through_mindspore
from inference.parallel.topology import RANK, Topology, meeting_address, patience, scheduler_address

# Seconds that an ending rank waits for the scheduler to notice.
BRIEFLY = 5.0
_joined: list[Topology] = []
BACKENDS = {"CPU": "mccl", "Ascend": "hccl"}


@dataclass(frozen=True)
class Ranks:
    """This rank's connections to the others.

    Args:
        group: the ranks that share its model; None if it does not share it.
    """

    links: Links
    group: Group | None

    @property
    def topology(self) -> Topology:
        return self.links.topology


def join(
    config: InferenceConfig, topology: Topology, is_native: bool, lost: Callable[[str], None] | None = None
) -> Ranks:
    """Wait for all ranks and connect them; afterwards, end this process if one of them is lost.

    Args:
        is_native: whether this rank's kernels are the native ones.
        lost: called in another thread with the reason; it must end the process.

    Raises:
        PeerLostError: a rank does not connect.
        ConfigError: some ranks have native kernels and some do not.
        InferenceError: this process has joined already.
    """
    if _joined:
        raise InferenceError("the ranks of a run share one model and already have it", "run one program for each model")
    _joined.append(topology)
    address = meeting_address()
    if is_mindspores():
        _initialize(config)
        links = connect(topology, through_mindspore, address[0])
    elif is_native:
        links = connect(topology, _by_scheduler(topology, address), address[0])
    else:
        _check_all(meet(address, topology.rank, MINDSPORE, patience()))
        _initialize(config)
        links = connect(topology, through_mindspore, address[0])
    links.watch(lost)
    if topology.model_parallel == 1:
        return Ranks(links, None)
    return Ranks(links, native_group(links) if is_native else mindspore_group(topology))


def stay_away() -> None:
    """Tell the other ranks that this one ends without joining. Does nothing if it has joined."""
    if not _joined and RANK in os.environ:
        with suppress(InferenceError):
            meet(scheduler_address(), int(os.environ[RANK]), None, BRIEFLY)


def threads_per_rank(links: Links) -> int:
    """An even share of the processors that this rank may use."""
    return max(1, len(os.sched_getaffinity(0)) // links.sharing_processors)


def _initialize(config: InferenceConfig) -> None:
    """Set up MindSpore's communication, unless the program has done so."""
    from mindspore import communication

    if not communication.GlobalComm.INITED:
        communication.init(BACKENDS[config.context.device_target])


def _by_scheduler(topology: Topology, address: tuple[str, int]) -> Exchange:
    def exchange(text: str) -> list[str]:
        texts = meet(address, topology.rank, text, patience())
        _check_all(texts)
        return texts

    return exchange


def _check_all(texts: list[str]) -> None:
    stock = [rank for rank, text in enumerate(texts) if text == MINDSPORE]
    if stock and len(stock) < len(texts):
        raise ConfigError(
            f"ranks {json.dumps(stock)} have no native kernels, and the others do",
            "give all ranks --engine.kernels stock",
        )
