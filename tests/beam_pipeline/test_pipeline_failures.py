"""Rows that fail are counted while a pipeline runs, and too many of them end it."""

from __future__ import annotations

import json
import time
from functools import partial

import pytest

pytest.importorskip("apache_beam")

import inference.beam.pipeline.progress
from inference.beam.pipeline.failures import NoteFailures, TooManyFailuresError, too_many
from inference.beam.pipeline.files import FAILURES, OutputDirectory
from inference.beam.pipeline.progress import Standing, Work
from inference.beam.pipeline.row_state import RowState
from inference.beam.pipeline.steps import graph_of
from inference.config.schema import PipelineSettings
from inference.terminal.progress import ProgressLine

LOUD = {"steps": {"loud": {"handler": "pipeline_handlers.Shout"}}}


def rows(*texts: str) -> list[dict]:
    return [{"custom_id": f"r{number}", "prompt": text} for number, text in enumerate(texts)]


def test_too_many_failures_end_the_run_which_can_be_resumed(place):
    """Those that a model fails on and those that make no sense; what was answered before is safe."""
    place.write("in.jsonl", *rows("a", "b", "c", "d", "boom", "e", "f", "boom"), "no json")
    settings = {**LOUD, "checkpoint_seconds": 60}
    with pytest.raises(TooManyFailuresError) as stopped:
        place.run("in.jsonl", pipeline=settings, max_errors=2, again="COMMAND")
    assert stopped.value.exit_code == 3
    assert str(stopped.value) == (
        "stopped: more than 2 rows failed, the last: RuntimeError: boom was in it; "
        f"the failures are in {place.directory}/out/.parts/*.failed; 6 answers are safe; resume with: COMMAND"
    )
    noted = place.failures("out/.parts/*.failed")
    assert sorted(row["error"]["type"] for row in noted) == ["bad_row", "model_failed", "model_failed"]
    assert not place.records()
    assert place.run("in.jsonl", pipeline=settings, max_errors=3, resume=True) == 3
    assert set(place.texts().values()) == {"A!", "B!", "C!", "D!", "E!", "F!"}
    counts = json.loads((place.directory / "out" / "metrics.json").read_text())["rows"]
    assert counts == {"rows_read": 9, "rows_answered": 6, "rows_failed": 3, "answers_of_earlier_runs": 6}
    assert not (place.directory / "out" / ".parts").exists()


def test_a_row_that_fails_in_two_branches_counts_once(place):
    place.write("in.jsonl", *rows("a", "boom"))
    steps = {"one": {"handler": "pipeline_handlers.Shout"}, "two": {"handler": "pipeline_handlers.Shout"}}
    assert place.run("in.jsonl", pipeline={"steps": steps}, max_errors=1) == 3
    assert len(place.failures()) == len(place.records()) == 1


def test_processes_see_each_other_s_failures(tmp_path):
    """Each has a count of its own until it writes; the last to write sees all."""
    output, graph = OutputDirectory(str(tmp_path / "out")), graph_of(PipelineSettings())
    output.make()

    def worker(name: str, seconds: float) -> NoteFailures:
        made = NoteFailures(name, graph, (output, seconds), 3)
        made.setup()
        return made

    def fail(made: NoteFailures, row: int) -> None:
        list(made.process(RowState(f"r{row}", "f", row, row + 1).failed("bad_row", "no good")))

    first, second = worker("first", 60), worker("second", 60)
    for row in (0, 1):
        fail(first, row)
    for row in (1, 2):
        fail(second, row)
    first.finish_bundle()
    second.finish_bundle()
    assert output.count(FAILURES) == 4  # of three rows
    third = worker("third", 60)
    fail(third, 3)
    with pytest.raises(TooManyFailuresError, match="more than 3 rows failed"):
        third.finish_bundle()
    with pytest.raises(TooManyFailuresError):
        fail(worker("fourth", 0), 4)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("  File\ninference.beam.failures.TooManyFailuresError: more [while running 'A/B-ptr", "more"),
        (
            "inference.beam.pipeline.failures.TooManyFailuresError: more than 1 row failed\n\nnoise",
            "more than 1 row failed",
        ),
        ("ValueError: more than 1 row failed", None),
    ],
)
def test_the_message_of_a_worker(text, said):
    assert too_many(RuntimeError(text)) == said


def test_the_progress_of_a_run():
    reading = Standing(1, 1000, 0, 0, 0, 0)
    assert reading.line(Work(3), 5) == "reading: 1 of 3 inputs, 1,000 rows"
    begun = Standing(3, 3000, 1000, 500, 400, 0)
    assert begun.line(Work(3), 10) == "500 of 2,000 answers, 0 failed; 10.0 a second; ETA 0:02:30"
    failing = Standing(3, 3000, 0, 500, 0, 500)
    assert failing.line(Work(3), 10) == "500 of 3,000 answers, 500 failed; 50.0 a second; ETA 0:00:40"
    split = Standing(1, 10, 0, 0, 0, 0)
    assert split.line(Work(1, 1.5, exact=False), 1) == "0 of about 15 answers, 0 failed; 0.0 a second"


def test_a_graph_knows_how_many_answers_a_row_gets():
    steps = {
        "all": {},
        "one": {},
        "two": {},
        "after": {"after": "two", "template": "{{ answer }}"},
        "end": {"after": ["one", "two", "all"], "template": "{{ answer }} {{ all }}"},
    }
    settings = PipelineSettings.model_validate({"steps": steps, "splits": [{"one": 0.75, "two": 0.25}]})
    assert graph_of(settings).answers_per_row == 1 + 0.75 + 0.25 + 0.25 + 1


def test_progress_has_a_total(place, monkeypatch, capfd):
    monkeypatch.setattr(inference.beam.pipeline.progress, "LOOK", 0.02)
    monkeypatch.setattr(inference.beam.pipeline.progress, "ProgressLine", partial(ProgressLine, interval=0.02))
    monkeypatch.setattr("pipeline_handlers.Shout.run_inference", _slowly)
    place.write("in/a.jsonl", *rows(*"abcdefgh"), "no json")
    place.write("in/b.jsonl", {"prompt": "i"})
    assert place.run("in/*.jsonl", pipeline={**LOUD, "checkpoint_seconds": 0.01}) == 3
    lines = capfd.readouterr().err.splitlines()
    assert any("of 10 answers, 1 failed;" in line and "ETA 0:00:0" in line for line in lines), lines


def _slowly(self, batch, model, inference_args=None):
    time.sleep(0.3)
    return [text.upper() for text in batch]
