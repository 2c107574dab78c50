"""What the command line can do, without the command line: predict, evaluate, pipeline, convert, and check."""

from inference.modes.chat import chat
from inference.modes.check import check
from inference.modes.convert import convert
from inference.modes.evaluate import evaluate
from inference.modes.follower import assist
from inference.modes.pipeline import check_other, pipeline
from inference.modes.predict import predict
from inference.modes.serve import serve

__all__ = ["assist", "chat", "check", "check_other", "convert", "evaluate", "pipeline", "predict", "serve"]
