"""Ranks as threads or processes of a test, without msrun: they meet at a scheduler of the test's own."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from inference.parallel.links import Links, connect
from inference.parallel.rendezvous import meet, serve
from inference.parallel.topology import Topology

Result = TypeVar("Result")
PATIENCE = 60.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def link(rank: int, model_parallel: int, data_parallel: int, port: int) -> Links:
    """Connects one rank."""
    address = ("127.0.0.1", port)
    topology = Topology(rank, model_parallel, data_parallel)
    return connect(topology, lambda text: meet(address, rank, text, PATIENCE))


def in_threads(model_parallel: int, data_parallel: int, work: Callable[[Links], Result]) -> list[Result]:
    """`work` on every rank, each a thread; results by rank."""
    port, count = free_port(), model_parallel * data_parallel
    threading.Thread(target=serve, args=(("127.0.0.1", port), count, PATIENCE), daemon=True).start()
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(partial(_run, model_parallel, data_parallel, port, work), range(count)))


def _run(model_parallel: int, data_parallel: int, port: int, work: Callable[[Links], Result], rank: int) -> Result:
    links = link(rank, model_parallel, data_parallel, port)
    try:
        return work(links)
    finally:
        links.close()
