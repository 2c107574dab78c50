"""The scheduler: listens, and waits for ever."""

import os
import socket
import time


def init(backend: str) -> None:
    assert backend == "mccl"
    if os.environ.get("FAKE_SCHEDULER_ERROR"):
        raise SystemExit(os.environ["FAKE_SCHEDULER_ERROR"])
    with socket.create_server(("127.0.0.1", int(os.environ["MS_SCHED_PORT"]))):
        time.sleep(1000)
