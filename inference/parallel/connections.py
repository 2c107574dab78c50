"""The connections of a rank: within its replica, and between the leaders of replicas.

If a connection closes before both ends have agreed to close it, a rank has died. A thread detects this and ends
this rank at once, even while it waits for a message, runs a collective, or computes.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import select
import socket
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from inference.errors import EXIT_FAILURE, ConfigError, reason_of
from inference.parallel.channel import Channel, PeerLostError
from inference.parallel.rendezvous import Exchange
from inference.parallel.topology import Topology

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# Time limit for a connection once all ranks are known, in seconds.
PATIENCE = 60.0
TOKEN_BYTES = 16
# Sets the address at which other machines reach this one, if it has several.
ADDRESS = "INFERENCE_ADDRESS"


@dataclass(frozen=True)
class Peer:
    """Data that a rank sends to the others about itself.

    Args:
        host: the id of the running system; equal only for processes that can share memory.
        cpus: a digest of the processors that it may use.
        address: the host and port where it listens.
        token: the secret that a caller must send first.
    """

    host: str
    cpus: str
    address: tuple[str, int]
    token: str


class Links:
    """Open connections to other ranks; made by `connect`.

    Attributes:
        leader: connection to this rank's leader; None on a leader.
        followers: on a leader, connections to the other ranks of its replica, by model rank.
        root: on the other replicas' leaders, the connection to rank 0; None elsewhere.
        replicas: on rank 0, connections to the leaders of the other replicas.
        peers: data of all ranks, in order.
    """

    def __init__(
        self,
        topology: Topology,
        peers: list[Peer],
        *,
        leader: Channel | None = None,
        followers: Iterable[Channel] = (),
        root: Channel | None = None,
        replicas: Iterable[Channel] = (),
    ):
        self.topology, self.peers = topology, peers
        self.leader, self.root = leader, root
        self.followers, self.replicas = list(followers), list(replicas)
        self._watching = False

    @property
    def channels(self) -> list[Channel]:
        single = [channel for channel in (self.leader, self.root) if channel is not None]
        return [*single, *self.followers, *self.replicas]

    @property
    def on_one_host(self) -> bool:
        """Whether all ranks of this replica share memory."""
        return len({self.peers[rank].host for rank in self.topology.replica_ranks}) == 1

    @property
    def sharing_processors(self) -> int:
        """Number of ranks that use the same processors as this one."""
        own = self.peers[self.topology.rank]
        return sum((peer.host, peer.cpus) == (own.host, own.cpus) for peer in self.peers)

    @property
    def sharing_memory(self) -> int:
        """Number of ranks on this host."""
        return sum(peer.host == self.peers[self.topology.rank].host for peer in self.peers)

    def watch(self, lost: Callable[[str], None] | None = None) -> None:
        """End this process as soon as another rank is lost, until `close` is called.

        Args:
            lost: called with a message instead of ending the process.
        """
        self._watching = True
        threading.Thread(target=self._watch, args=(lost or _end,), name="links", daemon=True).start()

    def _watch(self, lost: Callable[[str], None]) -> None:
        poll = select.poll()
        names = {channel.fileno(): channel.peer for channel in self.channels}
        for number in names:
            poll.register(number, select.POLLRDHUP)
        while self._watching:
            for number, _ in poll.poll(200):
                if self._watching:
                    lost(f"rank {names[number]} is gone, so this rank ends; the log of rank {names[number]} says why")
                return

    def unwatch(self) -> None:
        """Stop watching: after this, other ranks may end."""
        self._watching = False

    def close(self) -> None:
        """Close all connections."""
        self.unwatch()
        for channel in self.channels:
            channel.close()


def connect(topology: Topology, exchange: Exchange, scheduler: str = "127.0.0.1") -> Links:
    """Connect this rank to its leader, or to its followers, and rank 0 to the other leaders.

    Args:
        scheduler: a host that all ranks reach. This rank listens at the address from which it reaches that host.

    Raises:
        PeerLostError: a rank does not connect in time.
    """
    token = secrets.token_hex(TOKEN_BYTES)
    with socket.create_server((own_address(scheduler), 0), backlog=topology.world_size) as server:
        own = Peer(host_id(), _processors(), server.getsockname()[:2], token)
        peers = [_peer(text) for text in exchange(json.dumps([own.host, own.cpus, *own.address, own.token]))]
        assert len(peers) == topology.world_size
        if not topology.is_leader:
            return Links(topology, peers, leader=_call(topology, peers, topology.leader))
        # A caller waits in the listen queue of the rank that it calls, so no order of calls can deadlock.
        root = None if topology.is_root else _call(topology, peers, 0)
        callers = set(topology.replica_ranks) - {topology.rank}
        if topology.is_root:
            callers |= set(topology.leaders) - {0}
        came = {channel.peer: channel for channel in _answer(server, token, callers)}
    followers = [came[rank] for rank in topology.replica_ranks if rank in came]
    replicas = [came[rank] for rank in topology.leaders if rank in came]
    return Links(topology, peers, followers=followers, root=root, replicas=replicas)


def host_id() -> str:
    """The id of the running system; processes of the same system can share memory."""
    shared = Path("/dev/shm")
    device = shared.stat().st_dev if shared.is_dir() else os.getpid()
    boot = BOOT_ID.read_text().strip() if BOOT_ID.exists() else socket.gethostname()
    return f"{boot}-{device}"


def own_address(host: str) -> str:
    """The address of this machine that `host` sees, found without sending anything; or the one in `INFERENCE_ADDRESS`.

    Raises:
        ConfigError: the variable is not an address of this machine.
    """
    if given := os.environ.get(ADDRESS):
        try:
            socket.create_server((given, 0)).close()
        except OSError as error:
            raise ConfigError(f"{ADDRESS}={given} is not an address of this machine: {error.strerror}") from error
        return given
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))
        return str(probe.getsockname()[0])


def _processors() -> str:
    return hashlib.blake2b(repr(sorted(os.sched_getaffinity(0))).encode(), digest_size=8).hexdigest()


def _peer(text: str) -> Peer:
    host, cpus, address, port, token = json.loads(text)
    return Peer(host, cpus, (address, port), token)


def _call(topology: Topology, peers: list[Peer], rank: int) -> Channel:
    peer = peers[rank]
    try:
        connection = socket.create_connection(peer.address, timeout=PATIENCE)
    except OSError as error:
        where = f"{peer.address[0]}:{peer.address[1]}"
        raise PeerLostError(
            f"rank {rank} cannot be reached at {where} ({reason_of(error)})", "its own log says why"
        ) from error
    channel = Channel(connection, rank)
    channel.send("hello", token=peer.token, rank=topology.rank)
    return channel


def _answer(server: socket.socket, token: str, callers: set[int]) -> Iterable[Channel]:
    """Accept connections from all `callers`; reject those without the token."""
    missing = set(callers)
    server.settimeout(PATIENCE)
    while missing:
        try:
            connection, _ = server.accept()
        except TimeoutError as error:
            raise PeerLostError(f"ranks {sorted(missing)} did not connect in {PATIENCE:g} s") from error
        try:
            hello = Channel(connection, -1).expect("hello", timeout=PATIENCE).fields
        except (PeerLostError, TimeoutError):
            connection.close()
            continue
        if not secrets.compare_digest(str(hello.get("token")), token) or hello.get("rank") not in missing:
            connection.close()
            continue
        missing.remove(hello["rank"])
        yield Channel(connection, hello["rank"])


def _end(what: str) -> None:
    sys.stderr.write(f"error: {what}\n")
    sys.stderr.flush()
    # The main thread may be waiting in a collective that will never end.
    os._exit(EXIT_FAILURE)
