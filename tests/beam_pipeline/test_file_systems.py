"""A pipeline whose files are all in another file system, one without directories."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("apache_beam")

from memory_files import MemoryFiles
from pipeline_place import demo_with

from inference.beam.pipeline.failures import TooManyFailuresError
from inference.beam.pipeline.run import run_pipeline
from inference.config import load_config
from inference.errors import InputError

STEPS = {"loud": {"handler": "pipeline_handlers.Shout"}, "soft": {"handler": "pipeline_handlers.Shout"}}
ROWS = [{"custom_id": f"r{number}", "prompt": text} for number, text in enumerate(["a", "boom", "b"])]


@pytest.fixture(autouse=True)
def store():
    yield MemoryFiles.files
    MemoryFiles.files.clear()


def put(path: str, *rows: dict) -> None:
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    MemoryFiles.files[path] = (data, 0.0)


def records(name: str) -> dict[str, dict]:
    stored = [data for path, (data, _) in MemoryFiles.files.items() if path.startswith(f"mem://bucket/out/{name}-")]
    rows = [json.loads(line) for data in stored for line in data.splitlines()]
    assert len({row["custom_id"] for row in rows}) == len(rows)
    return {row["custom_id"]: row for row in rows}


def run(save_file: str = "mem://bucket/out", max_errors: int | None = None, **how) -> int:
    pipeline = {"steps": STEPS, "report_file": "mem://bucket/page.html", **how.pop("pipeline", {})}
    layers = {"run_mode": "pipeline", "pipeline": pipeline}
    layers["output"] = {"save_file": save_file, "max_errors": max_errors}
    return run_pipeline(load_config(demo_with(layers)), ["mem://bucket/in/*.jsonl"], [], **how)


def test_input_output_dead_letters_and_resume(store):
    put("mem://bucket/in/a.jsonl", *ROWS)
    with pytest.raises(TooManyFailuresError, match=r"the failures are in mem://bucket/out/.parts/\*.failed"):
        run(max_errors=0)
    assert not records("answers")
    assert run(resume=True) == 3
    assert {name: row["text"] for name, row in records("answers").items()} == {"r0": "A!", "r2": "B!"}
    (failed,) = records("failed").values()
    assert (failed["file"], failed["input"]) == ("mem://bucket/in/a.jsonl", ROWS[1])
    assert b"Comparison of loud, soft" in store["mem://bucket/page.html"][0]
    assert json.loads(store["mem://bucket/out/metrics.json"][0])["rows"]["rows_answered"] == 2
    left = [path.rpartition("/")[2] for path in store if "/out/" in path]
    assert sorted(name.partition("-0")[0] for name in left) == ["answers", "failed", "job.json", "metrics.json"]
    with pytest.raises(InputError, match="mem://bucket/out holds the output of a run"):
        run()
    put("mem://bucket/in/b.jsonl", {"custom_id": "r3", "prompt": "c"})
    assert run(resume=True, pipeline={"format": "parquet"}) == 3
    import io

    import pyarrow.parquet

    (table,) = (pyarrow.parquet.read_table(io.BytesIO(store[path][0])) for path in store if path.endswith(".parquet"))
    assert table.column("text").to_pylist() == ["C!"]
    assert run(overwrite=True) == 3
    assert set(records("answers")) == {"r0", "r2", "r3"} and not any(path.endswith(".parquet") for path in store)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere://bucket/out", "the output directory nowhere://bucket/out cannot be listed"),
        ("mem://bucket/out[1]", "has one of * ? ["),
    ],
)
def test_impossible_output(path, message):
    put("mem://bucket/in/a.jsonl", *ROWS)
    with pytest.raises(InputError) as caught:
        run(path)
    assert message in str(caught.value)
