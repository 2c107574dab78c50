"""Runs a pipeline to completion even if a worker on this machine dies.

Flink, Spark and Dataflow give the rows of a dead worker to another one. Beam's local runners fail instead, so
this module runs the pipeline again. Beam's sinks move their files into place when they are complete, so an interrupted
run leaves nothing in the output.
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
# Messages of Beam's local runners if the other process has died.
_DEATHS = ("channel closed prematurely", "worker subprocess exited", "worker died", "socket closed", "connection reset")


def run_to_the_end(
    build: Callable[[beam.Pipeline], object], options: PipelineOptions | None = None, attempts: int = ATTEMPTS
) -> PipelineResult:
    """Build and run a pipeline; run it again if a worker died.

    Args:
        build: applies the transforms to a pipeline; called for each attempt.
        attempts: maximum number of runs.

    Raises:
        Exception: the error of the last attempt, or any error other than a worker's death.
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
    """Whether a runner's error reports that a worker process died."""
    text = str(error).lower()
    return any(death in text for death in _DEATHS)
