"""`SparkCluster`: calls functions on the executors of a Spark cluster.

Knows Spark's contexts and tasks; knows nothing about rows or models.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from inference.errors import ConfigError, InferenceError

if TYPE_CHECKING:
    from pyspark import SparkContext

# Defaults for settings missing from the command line and spark-defaults.conf. Spark allows 4 failures per task, too few
# if machines disappear during tasks that take many minutes.
DEFAULTS = {
    "spark.master": "local[*]",
    "spark.app.name": "inference pipeline",
    "spark.task.maxFailures": "6",
    "spark.ui.showConsoleProgress": "false",
    "spark.log.level": "ERROR",
}


class SparkCluster:
    """Calls functions on a Spark cluster, one per task. A Python worker of an executor keeps its models.

    Args:
        address: URL of the master: `spark://host:7077`, `yarn`, `k8s://...`, `local[2]`. By default, the one in
            spark-submit or spark-defaults.conf, else this machine.
        cpus: CPUs per call (`spark.task.cpus`).
        options: other settings, such as `spark.executor.memory=8g`.
        python_path: directories from which workers must be able to import.

    Raises:
        ConfigError: an option is not a Spark setting.
    """

    name = "spark"

    def __init__(self, address: str | None, cpus: int, options: Sequence[str] = (), python_path: str = ""):
        self._settings = dict(_setting(option) for option in options)
        if address is not None:
            self._settings["spark.master"] = address
        self._settings["spark.task.cpus"] = str(cpus)
        self._cpus, self._path = cpus, python_path
        self._context: SparkContext | None = None

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Start a Spark application.

        Raises:
            InferenceError: Java is missing, or there is no master at the address.
        """
        from pyspark import SparkConf, SparkContext
        from pyspark.errors import PySparkException

        # Workers on this machine run this Python; other machines run the Python of the same name.
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        try:
            settings = SparkConf()
            for name, value in DEFAULTS.items():
                settings.setIfMissing(name, value)
            if self._path:
                settings.setExecutorEnv("PYTHONPATH", self._path)
            settings.setAll(list(self._settings.items()))
            self._context = SparkContext(conf=settings)
        except (PySparkException, OSError, RuntimeError) as error:
            hint = "Spark needs Java 17 or 21 in PATH or JAVA_HOME (Debian: openjdk-17-jre-headless)"
            raise InferenceError(f"Spark cannot start: {_first_line(error)}", hint) from error
        except Exception as error:  # py4j raises this for any Java exception
            raise InferenceError(f"Spark cannot start: {_reason(error)}", "check pipeline.address") from error
        try:
            yield
        finally:
            self._context.stop()
            self._context = None

    @property
    def slots(self) -> int:
        """Number of calls that the executors can currently run at the same time."""
        assert self._context is not None
        return max(int(self._context.defaultParallelism) // self._cpus, 1)

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        """Call a function with each item. Once all results have arrived, yield them in the order of the items.

        Raises:
            Exception: the function's own error, or a worker died too often.
        """
        assert self._context is not None
        if items:
            yield from self._context.parallelize(items, len(items)).map(function).collect()


def _setting(option: str) -> tuple[str, str]:
    name, found, value = option.partition("=")
    if not found or not name.startswith("spark."):
        raise ConfigError(
            f"pipeline.runner_options: '{option}' is not a setting of Spark",
            "give spark.NAME=VALUE, such as spark.executor.memory=8g",
        )
    return name, value


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _reason(error: BaseException) -> str:
    """Return the message of Java's exception, which py4j quotes after its own first line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line.lstrip(": ") for line in lines if line.startswith(": ")]
    return said[0] if said else _first_line(error)
