"""What the tests of pipelines share: a model that can be broken, and a look at what a pipeline gave."""

from __future__ import annotations

import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apache_beam as beam

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from toys import END, ByteTokenizer, ToyModel

from inference.answering.shared_model import LoadedModel
from inference.config import GenerationConfig
from inference.engine.background import BackgroundEngine
from inference.engine.engine import Engine
from inference.engine.metrics import RunMetrics
from inference.generation.text import AnswerRow, Encoder

ROOT = Path(__file__).parents[2]
DEMO = Path(__file__).parents[2] / "inference" / "demo"
CONTEXT = 64


class Together(BackgroundEngine):
    """Holds its model back until all rows of a call are there: how many run at once is then no matter of luck."""

    def __init__(self, open_engine: Any, going: threading.Event):
        super().__init__(open_engine)
        self._going = going

    def stream(self, rows: Any, most: int, every_token: bool = True) -> Any:
        def all_of_them() -> Iterator[Any]:
            self._going.clear()
            for number, row in enumerate(rows, 1):
                if number == most:
                    # No other is asked for before one of these has its answer.
                    self._going.set()
                yield row
            self._going.set()

        return super().stream(all_of_them(), most, every_token)


class ToyLLM:
    """An LLM on a toy model, without MindSpore."""

    max_sequences = 4
    generation_config = GenerationConfig(max_new_tokens=6, eos_token_id=END)

    def __init__(self, toy: Breakable):
        self.tokenizer = ByteTokenizer()
        self.model = self
        self.metrics = RunMetrics()
        only = threading.Lock()

        @contextmanager
        def open_engine() -> Iterator[Engine]:
            with only:
                engine = Engine(toy, max_sequences=self.max_sequences, metrics=self.metrics)
                try:
                    yield engine
                finally:
                    engine.close()

        self.background = Together(open_engine, toy.going)

    def encoder(self, tokenizer: Any, **settings: Any) -> Encoder:
        return Encoder(tokenizer, 258, CONTEXT, self.generation_config.updated(**settings))

    def row(self, source: Any, tokenizer: Any) -> AnswerRow:
        return AnswerRow.begin(source, source.request(CONTEXT), tokenizer)


class Breakable(ToyModel):
    """Breaks at a poisoned token, or when more rows run at once than its memory holds."""

    def __init__(self, poison: str = "", most_rows: int = 99):
        super().__init__(vocabulary=258, num_blocks=400, context_length=CONTEXT)
        self.breaks_at, self.most_rows = set(poison.encode()), most_rows
        self.going = threading.Event()

    def step(self, batch: Any) -> Any:
        assert self.going.wait(60)
        if len(batch.block_tables) > self.most_rows:
            raise MemoryError("out of memory: toy")
        if set(batch.tokens.tolist()) & self.breaks_at:
            raise RuntimeError("the kernel failed")
        return super().step(batch)


def breakable(**how: Any) -> LoadedModel:
    return LoadedModel(ToyLLM(Breakable(**how)), "toy")  # type: ignore[arg-type]


_FOUND: dict[str, list[Any]] = {}


class Sink:
    """Takes what a pipeline gives in this process; copies of it share one list."""

    def __init__(self) -> None:
        self.name = uuid.uuid4().hex
        _FOUND[self.name] = []

    def __call__(self, element: Any) -> None:
        self.rows.append(element)

    @property
    def rows(self) -> list[Any]:
        return _FOUND[self.name]


def run(build: Any, *arguments: str) -> tuple[list[Any], dict[str, Any]]:
    """What a pipeline gives, in the order in which it comes, and its metrics.

    Args:
        build: takes the pipeline, returns a collection.
        arguments: options of Beam.
    """
    sink, pipeline = Sink(), beam.Pipeline(argv=list(arguments))
    _ = build(pipeline) | "Sink" >> beam.Map(sink)
    result = pipeline.run()
    result.wait_until_finish()
    return sink.rows, metrics_of(result)


def metrics_of(result: Any) -> dict[str, Any]:
    """Sums of counters, and distributions, of our namespaces and of Beam's batching, by name."""
    found = result.metrics().query()
    counters = {item.key.metric.name: item.committed for item in found["counters"]}
    return counters | {item.key.metric.name: item.committed for item in found["distributions"]}
