"""Ends the worker processes of a local runner when the process that runs the pipeline ends, for any reason.

Otherwise Beam's workers would stay alive with a model in memory, and might still write during the next run. Knows
processes; knows nothing about Beam.
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
    """Tie the lifetime of workers started in this context to this process."""
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
    """End this worker when the process that it belongs to ends. Does nothing outside a worker."""
    leader = int(os.environ.get(VARIABLE, 0))
    if leader in (0, os.getpid()):
        return
    try:
        descriptor = os.pidfd_open(leader)
    except ProcessLookupError:
        os._exit(1)
    except OSError:
        return  # the kernel lacks pidfd: the worker ends when its connection closes
    threading.Thread(target=_wait, args=(descriptor,), name="lifeline", daemon=True).start()


def _wait(descriptor: int) -> None:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    poll.poll()
    os._exit(1)
