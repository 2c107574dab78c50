"""A pipeline on an engine that only calls functions: the same output as on Beam, whatever happens to its workers."""

from __future__ import annotations

import json
import random
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("apache_beam")

import cloudpickle
from pipeline_place import Place
from test_pipeline import ROWS

from inference.beam.pipeline.cluster_run import number_of_parts
from inference.beam.pipeline.files import OutputDirectory
from inference.beam.pipeline.shuffle import SpillWriter, part_of, read_part
from inference.errors import ConfigError, InferenceError


class HereCluster:
    """Calls functions in this process, in random order, as if they had been sent. A worker may die.

    Args:
        slots: calls at the same time, which determine the number of parts.
        dies: chance that a call is made once more after it was done, as if its worker had died before it could say so.
    """

    name = "ray"

    def __init__(self, slots=2, dies=0.0, seed=0):
        self.slots, self._dies, self._chance = slots, dies, random.Random(seed)
        self.calls = 0

    @contextmanager
    def connected(self):
        yield

    def map(self, function, items):
        sent = cloudpickle.dumps(function)
        for item in self._chance.sample(list(items), len(items)):
            self.calls += 1
            result = cloudpickle.loads(sent)(item)
            if self._chance.random() < self._dies:
                result = cloudpickle.loads(sent)(item)
            yield cloudpickle.loads(cloudpickle.dumps(result))


class KilledCluster(HereCluster):
    """The driver dies in the middle: no result of the last calls reaches it."""

    def map(self, function, items):
        for number, result in enumerate(super().map(function, items)):
            if number == 2 and type(function).__name__ == "AnswerPart":
                raise KeyboardInterrupt
            yield result


BAD = ["no json", {"custom_id": "sum", "prompt": "again"}, {"custom_id": "bad", "prompt": "a", "max_new_tokens": 0}]
MANY = [{"custom_id": f"r{n}", "prompt": f"{n} + {n + 1} =", "max_new_tokens": 4} for n in range(40)]


@pytest.fixture(scope="module")
def on_beam(tmp_path_factory) -> Place:
    place = Place(tmp_path_factory.mktemp("on_beam"))
    place.write("a.jsonl", *ROWS, *BAD)
    place.write("b.jsonl", {"prompt": "2 + 3 ="})
    assert place.run("a.jsonl", "b.jsonl") == 3
    return place


KEYS = ("text", "token_ids", "finish_reason", "prompt", "prompt_tokens", "completion_tokens", "model", "row")


def named(records, keys=KEYS):
    return {Path(name).name: {key: record[key] for key in keys} for name, record in records.items()}


@pytest.mark.parametrize("dies", [0.0, 1.0])
def test_the_output_is_that_of_beam(place, on_beam, dies, monkeypatch):
    monkeypatch.setattr("inference.beam.pipeline.cluster_run.LEAST_BYTES", 16)
    place.write("a.jsonl", *ROWS, *BAD)
    place.write("b.jsonl", {"prompt": "2 + 3 ="})
    assert place.run("a.jsonl", "b.jsonl", cluster=HereCluster(dies=dies)) == 3
    assert named(place.records()) == named(on_beam.records())
    reasons = [
        sorted((Path(row["custom_id"]).name, row["error"]["type"]) for row in p.failures()) for p in (place, on_beam)
    ]
    assert reasons[0] == reasons[1] and len(reasons[0]) == 3
    assert len(list((place.directory / "out").glob("failed-*"))) == 1
    figures = json.loads((place.directory / "out" / "metrics.json").read_text())
    assert {k: figures["rows"][k] for k in ("rows_read", "rows_answered", "rows_failed")} == {
        "rows_read": 9,
        "rows_answered": 6,
        "rows_failed": 3,
    }
    if dies:
        # The second attempt finds what the first had answered.
        assert figures["rows"]["answers_of_earlier_runs"] == 6
    else:
        assert figures["counters"]["model"]["completion_tokens"] > 20
    assert not (place.directory / "out" / ".parts").exists()


def test_a_killed_driver_resumes(place, monkeypatch):
    monkeypatch.setattr("inference.beam.pipeline.cluster_run.LEAST_BYTES", 64)
    place.write("many.jsonl", *MANY)
    with pytest.raises(KeyboardInterrupt):
        place.run("many.jsonl", cluster=KilledCluster())
    before = place.records()
    assert 0 < len(before) < len(MANY)
    assert place.run("many.jsonl", cluster=HereCluster(slots=5, seed=1), resume=True) == 0
    assert set(place.records()) == {row["custom_id"] for row in MANY}
    figures = json.loads((place.directory / "out" / "metrics.json").read_text())["rows"]
    assert figures["rows_done_before"] == len(before)
    assert figures["rows_answered"] == len(MANY) - len(before)
    # A third run has nothing to do; Beam reads the same directory.
    assert place.run("many.jsonl", resume=True) == 0
    assert set(place.records()) == {row["custom_id"] for row in MANY}


@pytest.mark.parametrize("form", ["text", "parquet"])
def test_parts_are_joined_into_the_wanted_number_of_files(place, form, monkeypatch):
    monkeypatch.setattr("inference.beam.pipeline.cluster_run.LEAST_BYTES", 64)
    place.write("many.jsonl", *MANY[:12])
    graph = {"shards": 1, "format": form}
    assert place.run("many.jsonl", cluster=HereCluster(), pipeline=graph) == 0
    (path,) = (place.directory / "out").glob("answers-*")
    if form == "parquet":
        import pyarrow.parquet

        names = pyarrow.parquet.read_table(path)["custom_id"].to_pylist()
    else:
        lines = path.read_text().splitlines()
        names = [line.partition("\t")[0] if form == "text" else json.loads(line)["custom_id"] for line in lines]
    assert sorted(names) == sorted(row["custom_id"] for row in MANY[:12])


def test_a_graph_of_steps(place, monkeypatch):
    """Steps after steps, a split, and handlers of other projects; a row that fails in one branch has the other's."""
    monkeypatch.setattr("inference.beam.pipeline.cluster_run.LEAST_BYTES", 64)
    graph = {
        "steps": {
            "one": {},
            "shout": {"handler": "pipeline_handlers.Shout", "arguments": {"mark": "?"}},
            "again": {"after": ["one"], "template": "{{ answer }} + 1 ="},
            "left": {"after": ["one"], "template": "{{ prompt }}"},
            "right": {"after": ["one"], "template": "{{ prompt }}{{ one }}"},
        },
        "splits": [{"left": 0.5, "right": 0.5}],
        "report_file": str(place.directory / "page.html"),
    }
    rows = [*MANY[:10], {"custom_id": "boom", "prompt": "boom", "max_new_tokens": 4}]
    place.write("rows.jsonl", *rows)
    assert place.run("rows.jsonl", cluster=HereCluster(), pipeline=graph) == 3
    assert place.run("rows.jsonl", pipeline=graph, out="beam") == 3
    ours, beams = place.records(), place.records("beam/answers-*.jsonl")
    for records in (ours, beams):
        for record in records.values():
            for step in record["steps"].values():
                del step["total_seconds"]
    steps = ("text", "steps", "custom_id")
    assert named(ours, steps) == named(beams, steps) and len(ours) == 10
    failed = place.failures()[0]
    assert failed["error"]["step"] == "shout" and failed["steps"]["one"]["text"]
    assert "Agreement" in (place.directory / "page.html").read_text()


def test_a_worker_that_outlives_its_run_writes_nothing(place):
    class Late(HereCluster):
        def map(self, function, items):
            if type(function).__name__ == "AnswerPart":
                OutputDirectory(str(place.directory / "out")).tidy()
            yield from super().map(function, items)

    place.write("a.jsonl", *MANY[:2])
    with pytest.raises(InferenceError, match="the run of this worker has ended"):
        place.run("a.jsonl", cluster=Late())
    assert not list((place.directory / "out").glob("answers-*"))


def test_too_many_failures_end_the_run(place):
    place.write("a.jsonl", *[{"custom_id": str(n), "prompt": ""} for n in range(3)])
    with pytest.raises(InferenceError, match="stopped: more than 1 row failed"):
        place.run("a.jsonl", cluster=HereCluster(), max_errors=1)


def test_features_that_only_beam_supports(place):
    place.write("a.jsonl", *MANY[:1])
    with pytest.raises(ConfigError, match="there is no flag --runner; options of Beam are for pipeline.engine beam"):
        place.run("a.jsonl", cluster=HereCluster(), options=("--runner=DirectRunner",))
    steps = {"steps": {"a": {"arguments": {"large_model": True}}}}
    with pytest.raises(
        ConfigError, match="pipeline.steps.a: large_model and model_copies are for pipeline.engine beam"
    ):
        place.run("a.jsonl", cluster=HereCluster(), pipeline=steps)


def test_items_reach_the_part_of_their_key(place, monkeypatch):
    monkeypatch.setattr("inference.beam.pipeline.shuffle.SPILL_BYTES", 60)
    output = OutputDirectory(str(place.directory / "out"))
    output.make()
    output.make_parts()
    paths = []
    for task in range(3):
        writer = SpillWriter(output, f"task{task}", 4)
        for n in range(task, 30, 3):
            writer.add(f"k{n}", n)
        writer.flush()
        paths += writer.paths
    assert len(paths) > 3
    for part in range(4):
        assert sorted(read_part(paths, part)) == sorted((f"k{n}", n) for n in range(30) if part_of(f"k{n}", 4) == part)


@pytest.mark.parametrize(
    ("num_bytes", "slots", "parts"), [(300, 2, 1), (50_000, 2, 3), (10**6, 2, 8), (10**9, 2, 238), (10**9, 100, 400)]
)
def test_number_of_parts(num_bytes, slots, parts):
    assert number_of_parts(num_bytes, slots) == parts
