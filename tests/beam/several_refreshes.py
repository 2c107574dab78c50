"""A pipeline whose workers are processes of their own and share models, which are exchanged while it runs.

`python several_refreshes.py DIRECTORY` says as JSON which models answered rows in which process, and the metrics.
DIRECTORY has the model `v1`; `hidden-v2` and `hidden-v3` come to light there when some rows are done.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

import apache_beam as beam
from apache_beam.ml.inference.base import KeyedModelHandler, ModelMetadata
from apache_beam.options.pipeline_options import PipelineOptions

from inference.beam import MindSporeModelHandler, RunInference

ROWS = 40
OPTIONS = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
# Rows that must be done, and what comes then.
VERSIONS = ((6, "v2"), (20, "v3"))


class Brings(beam.DoFn):
    """Lets a row through now and then, and brings versions of the model to light when so many are done."""

    def __init__(self, directory: str):
        self._directory = Path(directory)

    def process(self, number):
        time.sleep(0.2)
        (self._directory / f"done-{number}").touch()
        done = len(list(self._directory.glob("done-*")))
        for due, name in VERSIONS:
            hidden = self._directory / f"hidden-{name}"
            # The other worker may do it at the same time.
            with suppress(FileNotFoundError):
                if done >= due and hidden.exists():
                    os.utime(hidden / "model.safetensors")
                    hidden.rename(self._directory / name)
        yield number, "The dog"


def main(directory: str) -> None:
    pattern = f"{directory}/v*/model.safetensors"
    ways = {
        "large": ({"large_model": True}, {"watch_model_pattern": pattern, "interval": 0.2}),
        "copies": ({"model_copies": 2}, {"watch_model_pattern": pattern, "interval": 0.2}),
        "side": ({"large_model": True}, {}),
    }
    pipeline = beam.Pipeline(options=PipelineOptions(OPTIONS))
    rows = pipeline | beam.Create(range(ROWS)) | beam.ParDo(Brings(directory))
    for way, (handler, how) in ways.items():
        if way == "side":
            update = pipeline | "Update" >> beam.Create([ModelMetadata(f"{directory}/v1", "first")])
            how = {"model_metadata_pcoll": update}
        keyed = KeyedModelHandler(MindSporeModelHandler("demo", max_batch_size=1, **handler))
        settings = {"inference_args": {"max_new_tokens": 4}, "metrics_namespace": way}
        answered = rows | way >> RunInference(keyed, **settings, **how)
        lines = answered | f"Line-{way}" >> beam.Map(
            lambda row, way: json.dumps([way, row[0], row[1].model_id, row[1].inference["text"], os.getpid()]), way
        )
        _ = lines | f"Write-{way}" >> beam.io.WriteToText(f"{directory}/out-{way}")
    result = pipeline.run()
    result.wait_until_finish()
    found = result.metrics().query()
    counters = {f"{m.key.metric.namespace}/{m.key.metric.name}": m.result for m in found["counters"]}
    loads = {f"{m.key.metric.namespace}/{m.key.metric.name}": m.result.count for m in found["distributions"]}
    answers = [json.loads(line) for path in Path(directory).glob("out-*") for line in path.read_text().splitlines()]
    print(json.dumps({"answers": answers, "counters": counters, "loads": loads}))


if __name__ == "__main__":
    main(sys.argv[1])
