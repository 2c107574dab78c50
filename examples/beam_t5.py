"""Beam's example of RunInference with T5, on this project's models: text in, token ids through the model, text out.

    python examples/beam_t5.py --config demo_t5 --input examples/phrases.txt
    python examples/beam_t5.py --config demo --task_prefix 'Translate to German: ' --input examples/phrases.txt

`--config` is a preset or a YAML file, `--input` a file of lines, or a pattern of files in any of Beam's file systems.
All other options are Beam's own: `--runner`, `--direct_num_workers`, ...
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import cached_property

import apache_beam as beam
from apache_beam.ml.inference.base import PredictionResult
from apache_beam.options.pipeline_options import PipelineOptions, TypeOptions

from inference import AutoTokenizer
from inference.beam import MindSporeModelHandler, RunInference


class WithTokenizer(beam.DoFn):
    """Loads the tokenizer where it is used."""

    def __init__(self, config: str):
        self.config = config

    @cached_property
    def tokenizer(self):
        return AutoTokenizer.from_pretrained(self.config)


class Preprocess(WithTokenizer):
    """A line of text becomes the token ids of a task."""

    def __init__(self, config: str, task_prefix: str):
        super().__init__(config)
        self.task_prefix = task_prefix

    def process(self, line: str) -> Iterator[list[int]]:
        if line.strip():
            yield self.tokenizer.encode(self.task_prefix + line)


class Postprocess(WithTokenizer):
    """Token ids become text again: what was asked, and the answer."""

    def process(self, result: PredictionResult) -> Iterator[str]:
        asked = self.tokenizer.decode(result.example, skip_special_tokens=True)
        answer = self.tokenizer.decode(result.inference["token_ids"], skip_special_tokens=True)
        yield f"{asked} -> {answer.strip()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="a preset or a YAML file")
    parser.add_argument("--input", required=True, help="lines of text: a file, or a pattern of files")
    parser.add_argument("--task_prefix", default="translate English to German: ", help="begins each prompt")
    given, rest = parser.parse_known_args()
    options = PipelineOptions(rest)
    # The local runner then stays in this process, instead of fetching another one.
    options.view_as(TypeOptions).allow_unsafe_triggers = True
    with beam.Pipeline(options=options) as pipeline:
        _ = (
            pipeline
            | "Read" >> beam.io.ReadFromText(given.input)
            | "Preprocess" >> beam.ParDo(Preprocess(given.config, given.task_prefix))
            | "RunInference" >> RunInference(MindSporeModelHandler(given.config))
            | "Postprocess" >> beam.ParDo(Postprocess(given.config))
            | "Print" >> beam.Map(print)
        )


if __name__ == "__main__":
    main()
