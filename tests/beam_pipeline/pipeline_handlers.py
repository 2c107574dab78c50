"""Handlers and functions that tests name by their dotted paths."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

from apache_beam.ml.inference.base import ModelHandler, PredictionResult


class Shout(ModelHandler[str, Any, Any]):
    """Answers a text in capitals; fails on a batch with a text that holds `boom`, and loses a result for `lost`."""

    def __init__(self, mark: str = "!", kind: type = OrderedDict):
        super().__init__(max_batch_size=4)
        self._mark, self._kind = mark, kind

    def load_model(self) -> Any:
        return self._kind(mark=self._mark)

    def run_inference(self, batch: Sequence[str], model: Any, inference_args: Any = None) -> Iterable[Any]:
        if any("boom" in text for text in batch):
            raise RuntimeError("boom was in it")
        for text in batch:
            if "lost" not in text:
                yield PredictionResult(text, text.upper() + model["mark"])


def last_word(text: str) -> str:
    return text.split()[-1]


def length_of(values: dict[str, Any]) -> list[int]:
    return [len(values["prompt"]), len(values["small"])]


class NoHandler:
    pass
