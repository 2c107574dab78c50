"""Topology, rendezvous and messages between ranks: threads and real sockets, no MindSpore."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from ranks import free_port, in_threads

import inference
from examples import examples
from inference.config import load_config
from inference.errors import ConfigError
from inference.parallel.channel import DTYPES, Channel, PeerLostError
from inference.parallel.connections import Links, connect, own_address
from inference.parallel.rendezvous import NobodyNeededError, meet, serve
from inference.parallel.topology import Topology, check_topology, is_scheduler

ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda name: arrays_of.arrays(np.dtype(name), arrays_of.array_shapes(min_dims=0, max_dims=3, min_side=0))
)


def pair() -> tuple[Channel, Channel]:
    left, right = socket.socketpair()
    return Channel(left, 1), Channel(right, 0)


@examples(60)
@given(
    st.text(max_size=20), st.lists(ARRAYS, max_size=4), st.dictionaries(st.text(max_size=5), st.integers() | st.text())
)
def test_a_message_arrives_as_it_was_sent(kind: str, arrays: list[np.ndarray], fields: dict[str, object]) -> None:
    fields.pop("kind", None), fields.pop("arrays", None), fields.pop("self", None)
    left, right = pair()
    left.send(kind, arrays, **fields)
    left.send("next")
    message = right.receive()
    assert (message.kind, message.fields) == (kind, fields)
    for got, sent in zip(message.arrays, arrays, strict=True):
        assert got.dtype == sent.dtype and got.shape == sent.shape and got.tobytes() == sent.tobytes()
    assert right.receive().kind == "next"
    left.close()
    right.close()


def test_a_message_larger_than_any_buffer_arrives() -> None:
    left, right = pair()
    big = np.arange(1 << 21, dtype=np.float32)
    sender = threading.Thread(target=left.send, args=("big", [big]))
    sender.start()
    assert (right.receive().arrays[0] == big).all()
    sender.join()


def test_a_closed_connection_is_an_error_and_silence_a_timeout() -> None:
    left, right = pair()
    with pytest.raises(TimeoutError):
        right.receive(timeout=0.01)
    left.close()
    with pytest.raises(PeerLostError, match="rank 0 is gone"):
        right.receive()
    with pytest.raises(PeerLostError, match="rank 0 is gone"):
        for _ in range(2):
            right.send("anybody?")


def test_a_damaged_message_is_an_error() -> None:
    left, right = socket.socketpair()
    left.sendall(b"\x05\0\0\0\0\0\0\0nosen")
    with pytest.raises(PeerLostError):
        Channel(right, 0).receive()
    head = json.dumps(["x", {}, [["float32", [2]]]]).encode()
    left.sendall(len(head).to_bytes(4, "little") + b"\x04\0\0\0" + head + b"1234")
    with pytest.raises(PeerLostError):
        Channel(right, 0).receive()


@pytest.mark.parametrize(("model", "data"), [(1, 1), (2, 1), (1, 3), (4, 1), (2, 2)])
def test_every_rank_has_the_connections_it_needs(model: int, data: int) -> None:
    def work(links: Links) -> tuple[int | None, list[int], int | None, list[int], bool, int]:
        for channel in links.channels:
            channel.send("rank", rank=links.topology.rank)
        assert [channel.receive().fields["rank"] for channel in links.channels] == [c.peer for c in links.channels]
        leader, root = (channel and channel.peer for channel in (links.leader, links.root))
        others = [channel.peer for channel in links.followers], [channel.peer for channel in links.replicas]
        return leader, others[0], root, others[1], links.on_one_host, links.sharing_processors

    results = in_threads(model, data, work)
    for rank, (leader, followers, root, replicas, on_one_host, sharing) in enumerate(results):
        first = rank // model * model
        assert leader == (None if rank == first else first)
        assert followers == (list(range(first + 1, first + model)) if rank == first else [])
        assert root == (0 if rank == first and rank else None)
        assert replicas == (list(range(model, model * data, model)) if rank == 0 else [])
        assert on_one_host and sharing == model * data


def test_topology_of_two_by_three() -> None:
    ranks = [Topology(rank, 2, 3) for rank in range(6)]
    assert [(t.replica, t.model_rank, t.leader) for t in ranks] == [
        (0, 0, 0), (0, 1, 0), (1, 0, 2), (1, 1, 2), (2, 0, 4), (2, 1, 4)
    ]  # fmt: skip
    assert list(ranks[3].replica_ranks) == [2, 3] and list(ranks[3].leaders) == [0, 2, 4]
    assert [t.is_root for t in ranks] == [True] + 5 * [False]


def test_a_foreign_connection_is_rejected() -> None:
    """Somebody who does not know the token neither becomes a rank nor keeps the ranks from coming together."""
    port = free_port()
    threading.Thread(target=serve, args=(("127.0.0.1", port), 2, 30.0), daemon=True).start()

    def exchange(rank: int, text: str) -> list[str]:
        texts = meet(("127.0.0.1", port), rank, text, 30.0)
        if rank == 1:
            _, _, host, listens, _ = json.loads(texts[0])
            stranger = Channel(socket.create_connection((host, listens)), 0)
            stranger.send("hello", token="guessed", rank=1)
        return texts

    found: list[Links] = []
    threads = [
        threading.Thread(target=lambda r=rank: found.append(connect(Topology(r, 2, 1), lambda t: exchange(r, t))))
        for rank in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    leader, follower = sorted(found, key=lambda links: links.topology.rank)
    assert follower.leader is not None
    follower.leader.send("it is me")
    assert leader.followers[0].receive().kind == "it is me"


def test_ranks_that_never_connect_are_named() -> None:
    port = free_port()
    errors: list[BaseException] = []

    def come() -> None:
        try:
            meet(("127.0.0.1", port), 1, "", 30.0)
        except PeerLostError as error:
            errors.append(error)

    thread = threading.Thread(target=come)
    thread.start()
    with pytest.raises(Exception, match=r"ranks \[0, 2\] did not come in 1 s"):
        serve(("127.0.0.1", port), 3, 1.0)
    thread.join(30)
    assert errors


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\n\r\n", b'\x06\0\0\0[7,""]', b"\x02\0\0\0{}"], ids=len)
def test_a_foreign_connection_does_not_stop_the_ranks_from_meeting(said: bytes) -> None:
    port = free_port()
    scheduler = threading.Thread(target=serve, args=(("127.0.0.1", port), 2, 30.0))
    scheduler.start()
    texts: list[list[str]] = []
    ranks = [
        threading.Thread(target=lambda r=rank: texts.append(meet(("127.0.0.1", port), r, f"of {r}", 30.0)))
        for rank in range(2)
    ]
    ranks[0].start()
    time.sleep(0.1)
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        with suppress(OSError):  # the scheduler may have hung up already
            stranger.sendall(said)
            stranger.shutdown(socket.SHUT_WR)
        ranks[1].start()
        for thread in (*ranks, scheduler):
            thread.join(30)
    assert texts == [["of 0", "of 1"]] * 2


@pytest.mark.parametrize("first", [True, False])
def test_a_rank_that_does_not_take_part_releases_the_others(first: bool) -> None:
    """Before they have come, or while they wait."""
    port, found = free_port(), list[object]()
    scheduler = threading.Thread(target=lambda: found.append(serve(("127.0.0.1", port), 3, 30.0)))

    def come(rank: int) -> None:
        with pytest.raises(NobodyNeededError):
            meet(("127.0.0.1", port), rank, None if rank == 0 else "here", 30.0)
        found.append(rank)

    order = [0, 1, 2] if first else [2, 1, 0]
    ranks = [threading.Thread(target=come, args=(rank,)) for rank in order]
    scheduler.start()
    for rank in ranks:
        rank.start()
        time.sleep(0.1)
    for thread in (*ranks, scheduler):
        thread.join(30)
    assert sorted(map(str, found)) == ["0", "1", "2", "[]"]


FAMILY = """
import os, subprocess, sys
ranks = [subprocess.Popen(["sleep", "1000"]) for _ in range(2)]
cluster = {"MS_ROLE": "MS_SCHED", "MS_WORKER_NUM": "2", "MS_SCHED_HOST": "127.0.0.1", "MS_SCHED_PORT": sys.argv[1]}
scheduler = subprocess.Popen(
    [sys.executable, "-m", "inference.parallel.msrun_scheduler"], env={**os.environ, **cluster}
)
while True:
    try:
        import socket
        socket.create_connection(("127.0.0.1", int(sys.argv[1]))).close()
        break
    except OSError:
        pass
for rank in ranks: rank.kill()
sys.exit(scheduler.wait())
"""


def test_a_scheduler_ends_soon_if_ranks_never_connect() -> None:
    """As under msrun, which kills the ranks, asks about none of them any more, and waits for the scheduler."""
    roots = {**os.environ, "PYTHONPATH": str(Path(inference.__file__).parents[1])}
    words = [sys.executable, "-c", FAMILY, str(free_port())]
    done = subprocess.run(words, env=roots, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1 and "ranks [0, 1] have ended before all came together" in done.stderr


def test_the_address_of_a_machine_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_address("127.0.0.1") == "127.0.0.1"
    monkeypatch.setenv("INFERENCE_ADDRESS", "127.0.0.2")
    peers = in_threads(2, 1, lambda links: [peer.address[0] for peer in links.peers])
    assert peers == [["127.0.0.2"] * 2] * 2
    monkeypatch.setenv("INFERENCE_ADDRESS", "192.0.2.1")
    with pytest.raises(ConfigError, match=r"INFERENCE_ADDRESS=192.0.2.1 is not an address of this machine"):
        own_address("127.0.0.1")


WATCHER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from ranks import link
links = link(int(sys.argv[2]), 2, 1, int(sys.argv[3]))
links.watch()
print("here", flush=True)
sum(i for i in range(10**12))
"""


def test_a_killed_rank_ends_the_others_at_once() -> None:
    port = free_port()
    threading.Thread(target=serve, args=(("127.0.0.1", port), 2, 30.0), daemon=True).start()
    here = str(Path(__file__).parent)
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", WATCHER, here, str(rank), str(port)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    for rank in ranks:
        assert rank.stdout is not None and rank.stdout.readline() == "here\n"
    ranks[1].send_signal(signal.SIGKILL)
    started = time.monotonic()
    _, said = ranks[0].communicate(timeout=60)
    assert ranks[0].returncode == 1 and "rank 1 is gone" in said
    # MindSpore's own cluster takes half a minute to notice.
    assert time.monotonic() - started < 20


def config(**keys: object) -> object:
    return load_config({"use_parallel": True, "parallel_config": keys})


@pytest.mark.parametrize(
    ("keys", "count", "message"),
    [
        ({"model_parallel": 2}, 4, "data_parallel 1 x model_parallel 2 needs 2 processes, 4 were started; give "
         "parallel_config.data_parallel 2, or start 2"),
        ({"model_parallel": 3}, 4, "needs 3 processes, 4 were started; give parallel_config.model_parallel 4, or"),
        ({"model_parallel": 2, "data_parallel": 2}, 1, "needs 4 processes, 1 was started; start 4: bash scripts/"),
        ({"pipeline_stage": 2}, 2, "pipeline parallelism is not supported"),
    ],
)  # fmt: skip
def test_a_wrong_number_of_ranks_names_valid_ones(keys: dict[str, int], count: int, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_topology(config(**keys), {"INFERENCE_WORLD_SIZE": str(count)})
    assert message in str(caught.value)


def test_the_environment_determines_the_rank() -> None:
    msrun = {"MS_ROLE": "MS_WORKER", "MS_WORKER_NUM": "4", "RANK_ID": "3"}
    found = check_topology(config(model_parallel=2, data_parallel=2), msrun)
    assert found == Topology(3, 2, 2)
    assert is_scheduler({"MS_ROLE": "MS_SCHED"}) and not is_scheduler(msrun)
    assert check_topology(load_config({}), {"RANK_ID": "3"}) == Topology()
    with pytest.raises(ConfigError, match="use_parallel is False, 4 processes were started"):
        check_topology(load_config({}), msrun)
    with pytest.raises(ConfigError, match="--node_rank"):
        check_topology(config(model_parallel=4), {**msrun, "RANK_ID": ""})
