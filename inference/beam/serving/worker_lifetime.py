"""Worker processes of a local runner end with the process that runs the pipeline, whatever ends that.

Beam's own go on without it, with a model in memory, and might still write when the next run is there. Knows processes;
knows nothing about Beam.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

# The environment variable that tells a worker which process it belongs to.
VARIABLE = "INFERENCE_PIPELINE_PROCESS"


@contextmanager
def leading() -> Iterator[None]:
    """Workers that are started meanwhile belong to this process."""
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
    """To be called in a worker: it ends when the process does that it belongs to. Elsewhere it does nothing."""
    leader = int(os.environ.get(VARIABLE, 0))
    if leader in (0, os.getpid()):
        return
    try:
        descriptor = os.pidfd_open(leader)
    except ProcessLookupError:
        os._exit(1)
    except OSError:
        return  # a kernel without it: the worker ends when its connection is found closed
    threading.Thread(target=_wait, args=(descriptor,), name="lifeline", daemon=True).start()


def _wait(descriptor: int) -> None:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    poll.poll()
    os._exit(1)
