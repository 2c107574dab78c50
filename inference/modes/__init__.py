"""What the command line can do, without the command line: predict, evaluate, pipeline, convert, and check."""

from inference.modes.assistance import assist
from inference.modes.conversion import convert
from inference.modes.evaluation import evaluate
from inference.modes.pipelines import check_other, pipeline
from inference.modes.prediction import predict
from inference.modes.prepared import check

__all__ = ["assist", "check", "check_other", "convert", "evaluate", "pipeline", "predict"]
