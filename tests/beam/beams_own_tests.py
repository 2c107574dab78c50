"""Beam's own tests of RunInference, with its fake handlers made from ours: the model is fake, the plumbing is ours.

`python beams_own_tests.py theirs|ours` runs them with Beam's RunInference, or with ours.
"""

from __future__ import annotations

import logging
import sys
import unittest
from typing import Any, Generic

from apache_beam.ml.inference import base

from inference.beam import MindSporeModelHandler, RunInference


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


# Of these Beam's RunInference is the subject, and ours is to differ.
NOT_OURS = {
    "test_run_inference_with_iterable_side_input": "several updates are no error: the latest counts",
    "test_run_inference_with_iterable_side_input_multi_process_shared": "the same",
    "test_run_inference_watch_file_pattern_side_input_label": "a pattern is watched without a side input",
    "test_run_inference_watch_file_pattern_keyword_arg_side_input_label": "the same",
}


def main(which: str) -> int:
    logging.disable(logging.WARNING)
    module = tests_of_beam()
    if which == "ours":
        base.RunInference = RunInference
    suite = unittest.TestSuite()
    for case in (module.RunInferenceBaseTest, module.RunInferenceSizeTest, module.ModelHandlerBatchingArgsTest,
                 module.RunInferenceLengthAwareBatchingTest, module.RunInferenceRemoteTest):
        for test in unittest.defaultTestLoader.loadTestsFromTestCase(case):
            suite.addTest(test)
    result = unittest.TextTestRunner(verbosity=2).run(suite)
    return not result.wasSuccessful()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
