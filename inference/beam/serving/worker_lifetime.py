"""Ends the worker processes of a local runner when the process that runs the pipeline ends, for whatever reason.

Beam's own workers would live on with a model in memory, and might still write during the next run. Knows processes;
knows nothing about Beam.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

# Environment variable with the id of the process that a worker belongs to.
VARIABLE = "INFERENCE_PIPELINE_PROCESS"


@contextmanager
def leading() -> Iterator[None]:
    """Make workers that are started in this context belong to this process."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = str(os.getpid())
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = before


@cache
def follow() -> None:
    """Call this in a worker: it will end with the process that it belongs to. Elsewhere this does nothing."""
    leader = int(os.environ.get(VARIABLE, 0))
    if leader in (0, os.getpid()):
        return
    try:
        descriptor = os.pidfd_open(leader)
    except ProcessLookupError:
        os._exit(1)
    except OSError:
        return  # the kernel lacks it: the worker ends when it finds its connection closed
    threading.Thread(target=_wait, args=(descriptor,), name="lifeline", daemon=True).start()


def _wait(descriptor: int) -> None:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    poll.poll()
    os._exit(1)
