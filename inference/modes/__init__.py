"""What the command line can do, without the command line: predict, evaluate, validate, pipeline, convert, and check."""

from inference.modes.check import check
from inference.modes.convert import convert
from inference.modes.evaluate import evaluate
from inference.modes.follower import assist
from inference.modes.pipeline import check_other, pipeline
from inference.modes.predict import predict
from inference.modes.serve import serve
from inference.modes.validate import validate

__all__ = ["assist", "check", "check_other", "convert", "evaluate", "pipeline", "predict", "serve", "validate"]
