"""What msrun's scheduler process does: `python -m inference.parallel.scheduler`, with msrun's environment.

The ranks meet here. Where they say that they need MindSpore's communication, this becomes MindSpore's own scheduler, at
the same address.
"""

from __future__ import annotations

import os

from inference.parallel.rendezvous import serve
from inference.parallel.topology import WORKERS, patience, scheduler_address

# What a rank says that needs MindSpore's communication.
MINDSPORE = "mindspore"


def main() -> None:
    """Runs the scheduler until all ranks have met, or with MindSpore until they have ended.

    Raises:
        InferenceError: not all ranks came.
    """
    texts = serve(scheduler_address(), int(os.environ[WORKERS]), patience())
    if set(texts) == {MINDSPORE}:
        os.environ.setdefault("GLOG_v", "3")
        from mindspore import communication

        communication.init("mccl")


if __name__ == "__main__":
    main()
