"""`RayCluster`: calls functions on the workers of a Ray cluster.

Knows Ray's tasks; knows nothing about rows or models.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from inference.errors import ConfigError, InferenceError

# How often Ray retries a call whose worker died. More retries would hide a row that kills every worker.
RETRIES = 5
# Calls queued per slot: few, so that the driver's queue stays short.
QUEUED = 2


class RayCluster:
    """Calls functions on a Ray cluster, as tasks. An idle process takes the next task and keeps its models.

    Args:
        address: address of the cluster; by default `RAY_ADDRESS`, else a cluster on this machine, else a new one.
        cpus: CPUs per call.
        options: other resources per call, such as `NPU=1`.
        python_path: directories from which workers must be able to import.

    Raises:
        ConfigError: an option does not consist of a resource and a number.
    """

    name = "ray"

    def __init__(self, address: str | None, cpus: int, options: Sequence[str] = (), python_path: str = ""):
        self._address, self._cpus, self._path = address, cpus, python_path
        self._resources = _resources(options)

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Connect to the cluster, or start one. In a program that is already connected, use its connection.

        Raises:
            InferenceError: there is no cluster at the address.
        """
        import ray

        if ray.is_initialized():
            yield
            return
        environment = {"env_vars": {"PYTHONPATH": self._path}} if self._path else None
        try:
            ray.init(address=self._address, log_to_driver=False, logging_level="ERROR", runtime_env=environment)
        except (ConnectionError, RuntimeError, ValueError) as error:
            where = self._address or os.environ.get("RAY_ADDRESS") or "this machine"
            raise InferenceError(f"Ray cannot be reached at {where}: {error}", "check pipeline.address") from error
        try:
            yield
        finally:
            ray.shutdown()

    @property
    def slots(self) -> int:
        """Number of calls that the cluster can currently run at the same time."""
        import ray

        return max(int(ray.cluster_resources().get("CPU", 0)) // self._cpus, 1)

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        """Call a function with each item. Yield the results as they arrive.

        Raises:
            Exception: the function's own error, or a worker died too often.
        """
        import ray

        options = {"num_cpus": self._cpus, "max_retries": RETRIES, **self._resources}
        call = ray.remote(**options)(_called)
        shared = ray.put(function)
        waiting = list(reversed(items))
        running: list[Any] = []
        while waiting or running:
            while waiting and len(running) < (1 + QUEUED) * self.slots:
                running.append(call.remote(shared, waiting.pop()))
            done, running = ray.wait(running, num_returns=1)
            yield from ray.get(done)


def _called(function: Callable[[Any], Any], item: Any) -> Any:
    return function(item)


def _resources(options: Sequence[str]) -> Mapping[str, Any]:
    found: dict[str, float] = {}
    for option in options:
        name, _, number = option.partition("=")
        try:
            found[name] = float(number)
        except ValueError:
            raise ConfigError(
                f"pipeline.runner_options: '{option}' is not a resource of Ray", "give NAME=NUMBER, such as NPU=1"
            ) from None
    gpus = found.pop("GPU", None)
    return {**({"resources": found} if found else {}), **({} if gpus is None else {"num_gpus": gpus})}
