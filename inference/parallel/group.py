"""The ranks that share a model, as the kernels see them: a group of MindSpore's collectives, or of the native kernels.

The native kernels sum through shared memory if all ranks of a replica are on one host, and otherwise through the ranks'
connections.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass

import numpy as np

from inference.errors import InferenceError
from inference.kernels.library import RankGroup, group_bytes
from inference.parallel.connections import Links
from inference.parallel.topology import Topology


@dataclass(frozen=True)
class Group:
    """A replica's ranks, as a `kernels.Part` needs them.

    Args:
        name: the group's name in MindSpore.
        native: the native kernels' group; None if MindSpore computes the sums.
        transport: how the ranks exchange sums, in words.
    """

    name: str
    native: RankGroup | None
    transport: str

    @property
    def handle(self) -> int:
        return 0 if self.native is None else self.native.handle


def mindspore_group(topology: Topology) -> Group:
    """Create a group in MindSpore, whose communication must already be set up."""
    from mindspore.communication import create_group

    # Every rank must create exactly the groups that it belongs to.
    name = f"replica-{topology.replica}"
    create_group(name, list(topology.replica_ranks))
    return Group(name, None, "MindSpore's collectives")


def native_group(links: Links) -> Group:
    """Create a group of the native kernels."""
    topology = links.topology
    rank, size = topology.model_rank, topology.model_parallel
    memory = _shared_memory(links, group_bytes(size)) if links.on_one_host else None
    if memory is not None:
        return Group("", RankGroup(rank, size, memory), "shared memory")
    channels = links.followers if links.leader is None else [links.leader]
    return Group("", RankGroup(rank, size, None, [channel.fileno() for channel in channels]), "TCP connections")


def _shared_memory(links: Links, size: int) -> np.ndarray | None:
    """Memory that all ranks of the replica share; None if one of them cannot map it.

    It is anonymous, so it disappears with the last process, even if that one is killed.
    """
    if links.leader is not None:
        fields = links.leader.expect("memory").fields
        memory = _attach(f"/proc/{fields['pid']}/fd/{fields['number']}", size)
        links.leader.send("attached", ok=memory is not None)
        return memory if links.leader.expect("agreed").fields["ok"] else None
    number = os.memfd_create("inference-ranks")
    try:
        os.posix_fallocate(number, 0, size)
    except OSError as error:
        raise InferenceError(
            f"{size} bytes of shared memory for the ranks' sums cannot be allocated: {error.strerror}"
        ) from error
    memory = _attach(f"/proc/self/fd/{number}", size)
    for channel in links.followers:
        channel.send("memory", pid=os.getpid(), number=number)
    everybody = memory is not None
    for channel in links.followers:
        everybody &= channel.expect("attached").fields["ok"]
    for channel in links.followers:
        channel.send("agreed", ok=everybody)
    os.close(number)
    return memory if everybody else None


def _attach(path: str, size: int) -> np.ndarray | None:
    try:
        number = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        return np.frombuffer(mmap.mmap(number, size), np.uint8)
    finally:
        os.close(number)
