#!/usr/bin/env python3
"""Simulates a pipeline on a cluster: how long so many prompts take, what they cost, and where the time goes.

    python scripts/simulate_cluster.py --rows 1e9 --workers 2000 --rows_per_second 20 --price 1.5
    python scripts/simulate_cluster.py --rows 1e6 --workers 50 --rows_per_second 5 --rows_per_part 5000

A worker takes the next part, answers it, and takes another one. Some workers are slow for good; workers die at random,
and another one, after loading the model, goes on with the part from its last checkpoint. Measure `--rows_per_second` of
one worker with your own prompts: `--run_mode predict --metrics_file`. Plain Python, no packages.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Cluster:
    """What is simulated.

    Args:
        rows_per_second: of a worker that is not slow.
        spread: standard deviation of a part's time, as a share of its mean.
        load_seconds: until a new worker answers its first row.
        checkpoint_seconds: work that a dead worker loses, at most.
        hours_between_deaths: of one worker, the mean.
        slow_share: share of the workers that are slow.
        slow_speed: their speed, as a share of the others'.
        price: of a worker for an hour.
        tokens_per_row: of the prompt and the answer.
    """

    rows: int
    workers: int
    rows_per_part: int
    rows_per_second: float
    spread: float = 0.05
    load_seconds: float = 60.0
    checkpoint_seconds: float = 5.0
    hours_between_deaths: float = 500.0
    slow_share: float = 0.02
    slow_speed: float = 0.5
    price: float = 1.0
    tokens_per_row: float = 500.0


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Args:
        hours: from the start to the last part's end.
        busy: share of the workers' hours in which they answered rows for the first time.
        loading: share in which they loaded the model.
        repeated: share in which they repeated the lost work of dead ones.
        idle: share in which they waited for the last parts.
        cost: of all workers' hours.
    """

    parts: int
    hours: float
    busy: float
    loading: float
    repeated: float
    idle: float
    deaths: int
    cost: float
    cost_per_million_tokens: float


def simulate(cluster: Cluster, seed: int = 0) -> Outcome:
    """Run all parts on all workers."""
    chance = random.Random(seed)
    rate = 1 / (cluster.hours_between_deaths * 3600)
    slow = round(cluster.workers * cluster.slow_share)
    speed = [cluster.slow_speed if number < slow else 1.0 for number in range(cluster.workers)]
    free = [(cluster.load_seconds, number) for number in range(cluster.workers)]
    heapq.heapify(free)
    parts = -(-cluster.rows // cluster.rows_per_part)
    loading, repeated, answering = cluster.load_seconds * cluster.workers, 0.0, 0.0
    deaths, ended = 0, 0.0
    for part in range(parts):
        rows = min(cluster.rows_per_part, cluster.rows - part * cluster.rows_per_part)
        now, worker = heapq.heappop(free)
        needed = rows / cluster.rows_per_second / speed[worker] * max(chance.gauss(1, cluster.spread), 0.1)
        answering += needed
        while (alive := chance.expovariate(rate)) < needed:
            # Its successor loads the model, and repeats what came after the last checkpoint.
            lost = min(alive, chance.uniform(0, cluster.checkpoint_seconds))
            now += alive + cluster.load_seconds
            needed += lost - alive
            loading, repeated, deaths = loading + cluster.load_seconds, repeated + lost, deaths + 1
        now += needed
        ended = max(ended, now)
        heapq.heappush(free, (now, worker))
    total = ended * cluster.workers
    cost = total / 3600 * cluster.price
    idle = total - answering - loading - repeated
    return Outcome(
        parts=parts,
        hours=ended / 3600,
        busy=answering / total,
        loading=loading / total,
        repeated=repeated / total,
        idle=idle / total,
        deaths=deaths,
        cost=cost,
        cost_per_million_tokens=cost / (cluster.rows * cluster.tokens_per_row) * 1e6,
    )


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rows", type=float, default=1e9, help="prompts (default 1e9)")
    made.add_argument("--workers", type=int, default=1000, help="workers, each with one model (default 1000)")
    made.add_argument("--rows_per_second", type=float, default=20, help="of one worker, measured (default 20)")
    made.add_argument("--rows_per_part", type=int, default=5000, help="rows of a part (default 5000)")
    made.add_argument(
        "--load_seconds", type=float, default=60, help="to start a worker and load its model (default 60)"
    )
    made.add_argument("--checkpoint_seconds", type=float, default=5, help="pipeline.checkpoint_seconds (default 5)")
    made.add_argument("--hours_between_deaths", type=float, default=500, help="of one worker (default 500)")
    made.add_argument("--slow_share", type=float, default=0.02, help="share of slow workers (default 0.02)")
    made.add_argument("--slow_speed", type=float, default=0.5, help="their share of the speed (default 0.5)")
    made.add_argument("--price", type=float, default=1.0, help="of a worker for an hour (default 1)")
    made.add_argument("--tokens_per_row", type=float, default=500, help="prompt and answer (default 500)")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--json", action="store_true", help="print one JSON object")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    given = vars(parser().parse_args(arguments))
    seed, as_json = given.pop("seed"), given.pop("json")
    found = asdict(simulate(Cluster(**{**given, "rows": int(given["rows"])}), seed))
    if as_json:
        print(json.dumps(found))
        return 0
    for name, value in found.items():
        text = (
            f"{value:,.1%}" if name in ("busy", "loading", "repeated", "idle") else f"{value:,.2f}".removesuffix(".00")
        )
        print(f"{name:<24} {text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
