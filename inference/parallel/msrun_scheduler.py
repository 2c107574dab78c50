"""The scheduler process of a run: `python -m inference.parallel.msrun_scheduler`, with the environment that msrun
gives.

The ranks meet here. If they need MindSpore's communication, this process becomes MindSpore's own scheduler at the same
address.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

from inference.errors import EXIT_FAILURE
from inference.parallel.rendezvous import LOOK, serve
from inference.parallel.topology import MEETING, WORKERS, patience, scheduler_address

# Text that a rank sends if it needs MindSpore's communication.
MINDSPORE = "mindspore"
# Seconds that MindSpore's scheduler gets to exit once the ranks have ended.
FAREWELL = 10.0


def is_mindspores() -> bool:
    """Whether to run MindSpore's own scheduler: the launcher requests it, or the program has set up MindSpore's
    communication.
    """
    if os.environ.get(MEETING) == MINDSPORE:
        return True
    communication = sys.modules.get("mindspore.communication")
    return communication is not None and bool(communication.GlobalComm.INITED)


class Siblings:
    """The other children of this process's parent: the ranks on this machine."""

    def __init__(self) -> None:
        self._parent = os.getppid()
        self._seen = False
        self.all_ended()

    def all_ended(self) -> bool:
        """Whether there were ranks and all have ended; False if the system cannot tell."""
        listed = Path(f"/proc/{self._parent}/task/{self._parent}/children")
        try:
            others = set(listed.read_text().split()) - {str(os.getpid())}
        except OSError:
            return False
        running = any(_runs(pid) for pid in others)
        self._seen = self._seen or running
        return self._seen and not running and os.getppid() == self._parent

    def end_after_them(self) -> None:
        """End this process if it still runs after all ranks have ended."""
        while not self.all_ended():
            time.sleep(LOOK)
        time.sleep(FAREWELL)
        sys.stderr.write("error: the ranks have ended without telling MindSpore's scheduler; their logs say why\n")
        sys.stderr.flush()
        os._exit(EXIT_FAILURE)


def _runs(pid: str) -> bool:
    """Whether a process still runs. msrun leaves some killed processes as zombies."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def main() -> None:
    """Run the scheduler until all ranks have met, or, with MindSpore's, until they have ended.

    Raises:
        InferenceError: not all ranks connected.
    """
    siblings = Siblings()
    texts = serve(scheduler_address(), int(os.environ[WORKERS]), patience(), siblings.all_ended)
    if set(texts) == {MINDSPORE}:
        os.environ.setdefault("GLOG_v", "3")
        from mindspore import communication

        # On its own it takes half a minute to detect that a rank was killed, and msrun waits for it.
        threading.Thread(target=siblings.end_after_them, name="siblings", daemon=True).start()
        communication.init("mccl")


if __name__ == "__main__":
    main()
