"""`--run_mode pipeline`: runs rows through Beam, Ray or Spark. No other run mode imports them.

Knows the engines; `inference.beam.pipeline` runs the pipeline on each.
"""

from __future__ import annotations

import logging
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import inference
from inference.config import InferenceConfig
from inference.errors import ConfigError
from inference.modes.call import Call
from inference.terminal.output import count

if TYPE_CHECKING:
    from inference.beam.pipeline.cluster import Cluster

PACKAGES = {"ray": "ray", "spark": "pyspark"}


def run(call: Call) -> int:
    """Answers rows on the engine of the config.

    Returns:
        The exit code: 0, or 3 if rows failed.
    """
    how = {"overwrite": call.overwrite, "resume": call.resume, "again": call.resume_command}
    cluster = cluster_of(call.config)
    return int(_beam_pipeline().run_pipeline(call.config, call.values, call.beam_options, cluster=cluster, **how))


def check(call: Call) -> str:
    plan, _ = _beam_pipeline().check_pipeline(
        call.config, call.values, call.beam_options, call.may_exist, cluster_of(call.config)
    )
    models = ", ".join(f"{name}: {model.name}" for name, model in plan.models.items())
    return f"{models}; {count(len(plan.sources), 'input')}; ok"


def cluster_of(config: InferenceConfig) -> Cluster | None:
    """Returns the engine of a config, not yet connected; None for Beam.

    Raises:
        ConfigError: it is not installed, or an option is not one of the engine.
    """
    settings = config.pipeline
    if settings.engine == "beam":
        for key in ("address", "worker_cpus"):
            if config.origin(f"pipeline.{key}") != "default":
                raise ConfigError(f"pipeline.{key} is for pipeline.engine ray and spark", "use the options of Beam")
        return None
    package = PACKAGES[settings.engine]
    if find_spec(package) is None:
        hint = f"pip install 'mindspore-inference[beam,{settings.engine}]'"
        raise ConfigError(f"pipeline.engine {settings.engine} needs {package}", hint)
    root = str(Path(inference.__file__).parents[1])
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    path = os.pathsep.join(dict.fromkeys(part for part in (root, *paths) if part))
    given = (settings.address, settings.worker_cpus, settings.runner_options or (), path)
    if settings.engine == "ray":
        from inference.ray.cluster import RayCluster

        return RayCluster(*given)
    from inference.spark.cluster import SparkCluster

    return SparkCluster(*given)


def _beam_pipeline() -> Any:
    """Imports the module that runs pipelines, with logging off: Beam warns about optional packages when imported."""
    logging.disable(logging.WARNING)
    try:
        from inference.beam.pipeline import run
    finally:
        logging.disable(logging.NOTSET)
    return run
