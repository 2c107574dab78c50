#!/usr/bin/env python3
"""Kills workers and nodes of a cluster while a pipeline runs on it, and compares the answers with those of `predict`.

    python scripts/chaos_cluster.py ray --kills 10
    python scripts/chaos_cluster.py spark --kills 10

Starts a cluster of two nodes on this machine, each with one CPU: Ray's by its cluster utility, Spark's as a standalone
master with two workers. At random moments a victim gets SIGKILL: a process that answers rows, or a whole node, which is
then replaced. Runs pipelines until so many victims were killed midway. Exit code 1 if a row is lost, duplicated or
changed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil

ROOT = Path(__file__).resolve().parents[1]
WORDS = ("the", "cat", "ran", "over", "big", "red", "house", "and", "saw", "two", "small", "dogs", "near", "tree")
# Seconds that a pipeline may take.
END = 600.0


class ChaosError(Exception):
    """A pipeline failed, or lost, duplicated or changed a row."""


class Nodes(Protocol):
    """A cluster whose nodes can be killed and replaced."""

    address: str

    def workers(self) -> list[psutil.Process]:
        """The processes that answer rows."""

    def kill_node(self, chance: random.Random) -> None:
        """Kill all processes of a node, and start another one."""


class RayNodes:
    """A head without CPUs, and two nodes with one each."""

    def __init__(self, place: Path):
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "temp_dir": str(place)})
        self.address = self._cluster.address
        self._nodes = [self._cluster.add_node(num_cpus=1) for _ in range(2)]

    def workers(self) -> list[psutil.Process]:
        raylets = [node.all_processes["raylet"][0].process.pid for node in self._nodes]
        return [child for pid in raylets for child in children_of(pid) if command_of(child).startswith("ray::_called")]

    def kill_node(self, chance: random.Random) -> None:
        node = self._nodes.pop(chance.randrange(len(self._nodes)))
        self._cluster.remove_node(node, allow_graceful=False)
        self._nodes.append(self._cluster.add_node(num_cpus=1))

    def close(self) -> None:
        self._cluster.shutdown()


class SparkNodes:
    """A standalone master, and two workers with one core each."""

    def __init__(self, place: Path):
        import pyspark

        self._home, self._place = Path(pyspark.__file__).parent, place
        port = free_port()
        self.address = f"spark://127.0.0.1:{port}"
        self._master = self._started("master.Master", "--port", str(port), "--webui-port", "0")
        self._nodes = [self._node() for _ in range(2)]

    def _node(self) -> subprocess.Popen:
        return self._started(
            "worker.Worker",
            "--cores",
            "1",
            "--memory",
            "1g",
            "--webui-port",
            "0",
            "--work-dir",
            str(self._place),
            self.address,
        )

    def _started(self, kind: str, *arguments: str) -> subprocess.Popen:
        words = [self._home / "bin" / "spark-class", f"org.apache.spark.deploy.{kind}", "--host", "127.0.0.1"]
        environment = {**os.environ, "SPARK_LOCAL_IP": "127.0.0.1", "SPARK_DAEMON_MEMORY": "256m"}
        log = (self._place / f"{kind}.log").open("ab")
        with log:
            return subprocess.Popen([*map(str, words), *arguments], stdout=log, stderr=log, env=environment)

    def workers(self) -> list[psutil.Process]:
        found = [child for node in self._nodes for child in children_of(node.pid)]
        daemons = {child.pid for child in found if "pyspark.daemon" in command_of(child)}
        return [child for child in found if child.pid in daemons and parent_of(child) in daemons]

    def kill_node(self, chance: random.Random) -> None:
        node = self._nodes.pop(chance.randrange(len(self._nodes)))
        kill_tree(node.pid)
        node.wait()
        self._nodes.append(self._node())

    def close(self) -> None:
        for node in [*self._nodes, self._master]:
            kill_tree(node.pid)
            node.wait()


KINDS: dict[str, Callable[[Path], Any]] = {"ray": RayNodes, "spark": SparkNodes}


def children_of(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).children(recursive=True)
    return []


def command_of(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def parent_of(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.Error):
        return process.ppid()
    return 0


def kill_tree(pid: int) -> None:
    for process in [*children_of(pid), psutil.Process(pid)]:
        with contextlib.suppress(psutil.Error):
            process.kill()


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@dataclass(frozen=True)
class Pipeline:
    """The pipeline under test.

    Args:
        rows: a file of prompts.
        expected: the texts of `predict`, by name.
    """

    engine: str
    config: str
    rows: Path
    expected: dict[str, str]

    def start(self, address: str, output: Path) -> subprocess.Popen:
        settings = [
            "--pipeline.engine",
            self.engine,
            "--pipeline.address",
            address,
            "--pipeline.checkpoint_seconds",
            "0.5",
        ]
        if self.engine == "spark":
            # Spark gives up an application whose executors fail often. Here, they are meant to.
            options = "[spark.executor.memory=600m,spark.deploy.maxExecutorRetries=-1,spark.task.maxFailures=40]"
            settings += ["--pipeline.runner_options", options]
        return started("--run_mode", "pipeline", *settings, *self.files(output), config=self.config)

    def files(self, output: Path) -> list[str]:
        return ["--predict_data", str(self.rows), "--save_file", str(output)]

    def compare(self, output: Path) -> None:
        """Check that each row is there exactly once.

        Raises:
            ChaosError: it is not.
        """
        lines = [line for path in sorted(output.glob("answers-*.jsonl")) for line in path.read_text().splitlines()]
        records = [json.loads(line) for line in lines]
        found = {record["custom_id"]: record["text"] for record in records}
        if len(found) != len(records):
            raise ChaosError(f"{output}: {len(records) - len(found)} rows are there twice")
        wrong = sorted(name for name in {*found, *self.expected} if found.get(name) != self.expected.get(name))
        if wrong:
            raise ChaosError(f"{output}: {len(wrong)} rows are lost or changed, such as {wrong[:5]}")


def started(*arguments: str, config: str) -> subprocess.Popen:
    words = [sys.executable, str(ROOT / "run_inference.py"), "--config", config, "--max_new_tokens", "48", *arguments]
    paths = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH", "")) if part)
    environment = {**os.environ, "PYTHONPATH": paths, "SPARK_LOCAL_IP": "127.0.0.1"}
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, text=True)


def finished(process: subprocess.Popen) -> None:
    """Wait for a run.

    Raises:
        ChaosError: it failed.
    """
    said = process.communicate(timeout=END)[1]
    if process.returncode:
        raise ChaosError(f"exit code {process.returncode}:\n{said[-3000:]}")


def predicted(config: str, rows: Path, place: Path) -> dict[str, str]:
    """The texts of `predict`, by name."""
    saved = place / "predicted.jsonl"
    finished(started("--predict_data", str(rows), "--save_file", str(saved), config=config))
    return {record["custom_id"]: record["text"] for record in map(json.loads, saved.read_text().splitlines())}


def write_rows(path: Path, rows: int, chance: random.Random) -> None:
    lines = [{"custom_id": f"row{n}", "prompt": " ".join(chance.choices(WORDS, k=6))} for n in range(rows)]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def one_run(pipeline: Pipeline, nodes: Nodes, output: Path, most: int, chance: random.Random) -> dict[str, int]:
    """Run a pipeline, kill victims while it answers, and compare its answers. Returns the victims by kind.

    Raises:
        ChaosError: the pipeline failed, or a row is lost, duplicated or changed.
    """
    killed = {"worker": 0, "node": 0}
    run = pipeline.start(nodes.address, output)
    while run.poll() is None and sum(killed.values()) < most:
        # Before the first answers there is nothing to lose.
        if not list(output.glob(".parts/part*.jsonl")):
            time.sleep(0.1)
            continue
        time.sleep(chance.uniform(0.5, 6))
        if run.poll() is not None:
            break
        if chance.random() < 0.4:
            nodes.kill_node(chance)
            killed["node"] += 1
            continue
        while not (workers := nodes.workers()) and run.poll() is None:
            time.sleep(0.1)
        for worker in chance.sample(workers, min(1, len(workers))):
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()
                killed["worker"] += 1
    finished(run)
    pipeline.compare(output)
    return killed


@contextmanager
def cluster(kind: str) -> Iterator[Any]:
    # A socket's path has 107 bytes at most, so the directory has a short name.
    place = Path(tempfile.mkdtemp(prefix=kind[:3], dir="/tmp"))
    nodes = KINDS[kind](place)
    try:
        yield nodes
    finally:
        nodes.close()
        shutil.rmtree(place, ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=KINDS)
    parser.add_argument("--config", default="demo")
    parser.add_argument("--rows", type=int, default=1500, help="rows of each pipeline (default 1500)")
    parser.add_argument("--kills", type=int, default=10, help="victims in all (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and victims (default 0)")
    given = parser.parse_args(arguments)
    chance = random.Random(given.seed)
    total = {"worker": 0, "node": 0}
    runs = 0
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_rows(place / "rows.jsonl", given.rows, chance)
        try:
            expected = predicted(given.config, place / "rows.jsonl", place)
            pipeline = Pipeline(given.engine, given.config, place / "rows.jsonl", expected)
            with cluster(given.engine) as nodes:
                while sum(total.values()) < given.kills:
                    left = given.kills - sum(total.values())
                    killed = one_run(pipeline, nodes, place / str(runs), left, chance)
                    total = {kind: total[kind] + killed[kind] for kind in total}
                    runs += 1
        except ChaosError as error:
            print(f"seed {given.seed}: {error}", file=sys.stderr)
            return 1
    print(
        f"{given.engine}: {runs} pipelines of {given.rows} rows, {total['worker']} workers and {total['node']} nodes "
        "killed midway: every row once, with the text of predict"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
