"""Runs a pipeline to its end, also where a worker of this machine dies on the way.

Flink, Spark and Dataflow give the rows of a worker that died to another one. Beam's local runners do not: they end with
an error. Here the pipeline is run again then. Beam's sinks move what they wrote into place when all of it is there, so
nothing of a run that broke off is in the output.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineResult

from inference.beam.serving.worker_lifetime import leading

logger = logging.getLogger(__name__)

ATTEMPTS = 3
# What Beam's local runners say when the process at the other end is no more.
_DEATHS = ("channel closed prematurely", "worker subprocess exited", "worker died", "socket closed", "connection reset")


def run_to_the_end(
    build: Callable[[beam.Pipeline], object], options: PipelineOptions | None = None, attempts: int = ATTEMPTS
) -> PipelineResult:
    """Builds and runs a pipeline; again where a worker died.

    Args:
        build: applies the transforms to a pipeline; called for each attempt.
        attempts: how often it is run at most.

    Raises:
        Exception: what ended the last attempt, or an error that is not a worker's death.
    """
    for attempt in range(1, attempts + 1):
        pipeline = beam.Pipeline(options=options)
        build(pipeline)
        try:
            with leading():
                result = pipeline.run()
                result.wait_until_finish()
            return result
        except Exception as error:
            if attempt == attempts or not worker_died(error):
                raise
            logger.error("a worker died (%s): attempt %d of %d", error, attempt + 1, attempts)
    raise AssertionError("attempts must be at least 1")


def worker_died(error: BaseException) -> bool:
    """Whether an error of a runner says that a worker's process is no more."""
    text = str(error).lower()
    return any(death in text for death in _DEATHS)
