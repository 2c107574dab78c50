"""msrun --join=False: starts the scheduler and the workers, with the environment and the logs that msrun gives them,
and ends.
"""

import os
import subprocess
import sys
import time
from pathlib import Path


def start(log: Path, session: bool, **environment: object) -> None:
    with log.open("wb") as file:
        process = subprocess.Popen(
            ["python", *script],
            env={**os.environ, **{key: str(value) for key, value in environment.items()}},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=session,
        )
    process.returncode = 0


options = dict(word[2:].split("=", 1) for word in sys.argv[1:] if word.startswith("--"))
script = [word for word in sys.argv[1:] if not word.startswith("--")]
assert options["join"] == "False"
if os.environ.get("FAKE_MSRUN_ERROR"):
    sys.exit(os.environ["FAKE_MSRUN_ERROR"])
local, node = int(options["local_worker_num"]), int(options["node_rank"])
logs = Path(options["log_dir"])
common = {"MS_WORKER_NUM": options["worker_num"], "MS_SCHED_PORT": options["master_port"]}
if node == 0:
    start(logs / "scheduler.log", False, MS_ROLE="MS_SCHED", **common)
for i in range(local):
    rank = node * local + i
    start(logs / f"worker_{rank}.log", True, MS_ROLE="MS_WORKER", RANK_ID=rank, **common)
print("started", flush=True)
time.sleep(float(os.environ.get("FAKE_MSRUN_SECONDS", 0)))
# As Python does with objects of processes that it lets go of: what has ended by now is seen by nobody else.
if os.environ.get("FAKE_MSRUN_WAITS"):
    os.waitpid(-1, os.WNOHANG)
# Without the same for all others.
os._exit(0)
