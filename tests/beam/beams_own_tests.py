"""Beam's own tests of RunInference (they come with the package), whose fake handlers are made from ours: the model is
fake, the plumbing is ours. Once with Beam's RunInference, and once with ours.

    python beams_own_tests.py [--quick] [--pass theirs|ours]
"""

from __future__ import annotations

import logging
import subprocess
import sys
import unittest
from collections.abc import Iterator, Sequence
from typing import Any, Generic

from apache_beam.ml.inference import base

from inference.beam import MindSporeModelHandler, RunInference

CASES = ("RunInferenceBaseTest", "RunInferenceSizeTest", "ModelHandlerBatchingArgsTest")
CASES += ("RunInferenceLengthAwareBatchingTest", "RunInferenceRemoteTest")
# What they see is Beam's way to exchange models, which ours is not.
NOT_WITH_OURS = {
    "test_run_inference_with_iterable_side_input": "several updates are no error: the latest counts",
    "test_run_inference_with_iterable_side_input_multi_process_shared": "the same",
    "test_run_inference_watch_file_pattern_side_input_label": "a pattern is watched without a side input",
    "test_run_inference_watch_file_pattern_keyword_arg_side_input_label": "the same",
}
# They sleep for seconds.
NOT_QUICK = (
    "timeout_does_garbage_collection",
    "timeout_on_inference",
    "timeout_on_load",
    "timeout_not_hit",
    "garbage_collection",
    "works_on_retry",
    "repeated_requests_fail",
    "rate_limiter",
    "loads_same_model_with_identifier",
    "mps",
    "multi_process_shared",
)
# Of those that are quick, what our RunInference does otherwise than Beam's, or could.
QUICK_WITH_OURS = (
    "simple_examples",
    "many_model_handlers_metrics",
    "pre_and_post_processing_dlq",
    "timing_metrics",
    "prebatched",
    "side_input_in_batch_per_key_models_split",
)


class FakeBase(MindSporeModelHandler, Generic[base.ExampleT, base.PredictionT, base.ModelT]):
    """Ours without a model: a fake has its own `load_model` and `run_inference`."""

    def __init__(self, **arguments: Any):
        base.ModelHandler.__init__(self, **arguments)

    def validate_inference_args(self, inference_args: dict[str, Any] | None) -> None:
        """The fakes have arguments of their own."""


def tests_of_beam() -> Any:
    """Beam's module of tests, whose handlers derive from ours."""
    theirs, base.ModelHandler = base.ModelHandler, FakeBase
    try:
        from apache_beam.ml.inference import base_test
    finally:
        base.ModelHandler = theirs
    assert issubclass(base_test.FakeModelHandler, MindSporeModelHandler)
    return base_test


def chosen(module: Any, quick: bool, ours: bool) -> Iterator[unittest.TestCase]:
    for case in CASES:
        # Older Beams have fewer.
        for test in unittest.defaultTestLoader.loadTestsFromTestCase(getattr(module, case, unittest.TestCase)):
            name = test.id().rpartition(".")[2]
            if quick and (_has(name, NOT_QUICK) or (ours and not _has(name, QUICK_WITH_OURS))):
                continue
            if not (ours and name in NOT_WITH_OURS):
                yield test


def _has(name: str, parts: tuple[str, ...]) -> bool:
    return any(part in name for part in parts)


# Whose RunInference a pass tests, and what the report calls it.
PASSES = {"theirs": "Beam's RunInference", "ours": "ours"}


def run_pass(whose: str, quick: bool) -> int:
    """One pass. A process makes only one: a model that is shared by tag stays in its process after the tests."""
    logging.disable(logging.ERROR)
    module = tests_of_beam()
    if whose == "ours":
        base.RunInference = RunInference
    result = unittest.TextTestRunner().run(unittest.TestSuite(chosen(module, quick, whose == "ours")))
    print(f"{result.testsRun - len(result.failures) - len(result.errors)} passed with {PASSES[whose]}")
    return int(not result.wasSuccessful())


def main(arguments: Sequence[str]) -> int:
    if "--pass" in arguments:
        return run_pass(arguments[arguments.index("--pass") + 1], "--quick" in arguments)
    own = [sys.executable, __file__, *arguments, "--pass"]
    return max(subprocess.run([*own, whose], check=False).returncode for whose in PASSES)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
