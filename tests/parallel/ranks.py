"""Ranks as threads or processes of a test, without msrun: they meet at a scheduler of the test's own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import inference
from inference.parallel.connections import Links, connect
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


def steps_of(kind: str, size: int) -> int:
    """Steps of an answer: half of those that the goldens have, but fewer where each waits for more ranks than there are
    processors, or for a collective of MindSpore's at every sum."""
    return 32 if kind == "native" and size == 2 else 16


def start(size: int, arguments: Callable[[int, int], Sequence[str]], **options: Any) -> list[subprocess.Popen[str]]:
    """Processes in msrun's environment, with nobody who stands over them: the scheduler, and then the ranks.

    Args:
        arguments: what Python runs as a rank, of its number and the scheduler's port.
    """
    port = free_port()
    roots = os.pathsep.join([str(Path(inference.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    cluster = {"MS_WORKER_NUM": str(size), "MS_SCHED_HOST": "127.0.0.1", "MS_SCHED_PORT": str(port), "GLOG_v": "3"}
    environment = {**os.environ, **cluster, "PYTHONPATH": roots}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}

    def one(words: Sequence[str], **own: str) -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, *words], env={**environment, **own}, text=True, **options)

    ranks = [
        one(arguments(rank, port), MS_ROLE="MS_WORKER", RANK_ID=str(rank), MS_NODE_ID=str(rank)) for rank in range(size)
    ]
    return [one(["-m", "inference.parallel.msrun_scheduler"], MS_ROLE="MS_SCHED"), *ranks]


def in_processes(size: int, cases: Sequence[str], patience: float = 400) -> list[dict]:
    """Runs `shared_model.py` on `size` ranks; what the leader printed."""
    script = str(Path(__file__).with_name("shared_model.py"))
    scheduler, *ranks = start(size, lambda rank, port: [script, str(rank), str(size), str(port), *cases])
    try:
        said = [rank.communicate(timeout=patience) for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0] * size, "\n".join(err[-1500:] for _, err in said)
        assert scheduler.wait(timeout=60) == 0
    finally:
        for process in (scheduler, *ranks):
            process.kill()
    return [json.loads(line) for line in said[0][0].splitlines() if line.startswith("{")]
