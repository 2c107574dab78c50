"""A pipeline whose workers are processes of their own; in the second of them a row kills its worker, once.

`python several_processes.py DIRECTORY` says as JSON how often the model was loaded, and by how many workers rows were
answered.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from inference.beam import MindSporeModelHandler, RunInference, run_to_the_end

ROWS = 24
OPTIONS = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]


class Counting(MindSporeModelHandler):
    """Leaves a line for each model that is loaded."""

    def __init__(self, directory: str):
        super().__init__("demo", large_model=True, max_batch_size=4)
        self._directory = directory

    def load_model(self):
        with Path(self._directory, "loads").open("a") as file:
            file.write(f"{os.getpid()}\n")
        return super().load_model()


class Killer(beam.DoFn):
    """Kills its process at the first row whose answer is there, once."""

    def __init__(self, directory: str):
        self._mark = Path(directory, "killed")

    def process(self, row):
        key, result = row
        if key == ROWS // 2 and not self._mark.exists():
            self._mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        yield json.dumps([key, result.inference["text"], os.getpid()])


def main(directory: str) -> None:
    from apache_beam.ml.inference.base import KeyedModelHandler

    def build(pipeline: beam.Pipeline) -> None:
        rows = pipeline | beam.Create([(number, f"The dog {number}") for number in range(ROWS)])
        answered = rows | RunInference(KeyedModelHandler(Counting(directory)), inference_args={"max_new_tokens": 4})
        _ = answered | beam.ParDo(Killer(directory)) | beam.io.WriteToText(f"{directory}/out")

    run_to_the_end(build, PipelineOptions(OPTIONS))
    answers = [json.loads(line) for path in Path(directory).glob("out-*") for line in path.read_text().splitlines()]
    loads = Path(directory, "loads").read_text().split()
    print(json.dumps({"answers": answers, "loads": loads, "killed": Path(directory, "killed").exists()}))


if __name__ == "__main__":
    main(sys.argv[1])
