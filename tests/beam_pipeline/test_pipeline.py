"""Rows through models on Beam: the same answers as the batch job's, each row once, whatever happens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("apache_beam")

from pipeline_place import Place, demo_with

from inference.beam.pipeline.files import OutputDirectory
from inference.config import load_config
from inference.errors import ConfigError, InferenceError, InputError

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "configs" / "demo" / "predict_demo.yaml"
ROWS = [
    {"custom_id": "sum", "prompt": "12 + 7 ="},
    {"custom_id": "story", "prompt": "Once upon a time", "max_new_tokens": 30},
    {"custom_id": "chat", "messages": [{"role": "user", "content": "What is 2 + 3?"}]},
    {"custom_id": "ids", "prompt": [1205, 1227]},
    {"custom_id": "drawn", "prompt": "Once upon a time", "do_sample": True, "temperature": 0.9, "seed": 5},
]


def metrics(place: Place, out: str = "out") -> dict:
    return json.loads((place.directory / out / "metrics.json").read_text())["rows"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Place:
    return Place(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="module")
def first_run(shared) -> int:
    """Good rows and bad ones in three files."""
    shared.write("in/a.jsonl", *ROWS, "no json", {"custom_id": "sum", "prompt": "again"})
    shared.write(
        "in/b.jsonl", {"prompt": "2 + 3 ="}, {"custom_id": "bad", "prompt": "a", "max_new_tokens": 0}, "", "{}"
    )
    (shared.directory / "in" / "c.txt").write_text("Translate to German: the big house\n\n")
    return shared.run("in/*.jsonl", "in/c.txt")


def test_every_answer_is_that_of_predict(shared, first_run):
    assert first_run == 3
    from inference.modes import Call, predict

    save = shared.directory / "predicted.jsonl"
    files = [shared.write("good.jsonl", *ROWS), shared.write("b.jsonl", {"prompt": "2 + 3 ="})]
    text = shared.directory / "c.txt"
    text.write_text("Translate to German: the big house\n")
    predict.run(Call(load_config(demo_with({"output": {"save_file": str(save)}})), (*map(str, files), str(text))))
    predicted = [json.loads(line) for line in save.read_text().splitlines()]
    expected = {row["custom_id"]: row for row in predicted}
    inside = shared.directory / "in"
    renamed = {"5": f"{inside}/b.jsonl:1", "6": f"{inside}/c.txt:1"}
    answers = shared.records()
    assert set(answers) == {renamed.get(name, name) for name in expected}
    for name, row in expected.items():
        answer = answers[renamed.get(name, name)]
        # A sampled row without a seed would differ; all of these have one or are greedy.
        for key in ("text", "token_ids", "finish_reason", "prompt", "prompt_tokens", "completion_tokens", "model"):
            assert answer[key] == row[key], (name, key)
        # A row of a pipeline without a name is known by its file and line, and needs no digest.
        assert set(row) - set(answer) <= {"input_digest"}


def test_unanswerable_rows_report_why(shared, first_run):
    inside = shared.directory / "in"
    failures = {(row["custom_id"], row["error"]["type"]): row for row in shared.failures()}
    assert set(failures) == {
        ("sum", "duplicate_id"),
        (f"{inside}/a.jsonl:6", "bad_row"),
        ("bad", "bad_row"),
        (f"{inside}/b.jsonl:4", "bad_row"),
    }
    broken = failures[f"{inside}/a.jsonl:6", "bad_row"]
    assert (broken["input"], broken["error"]["line"], broken["row"]) == ("no json", 6, 5)
    assert (
        "a.jsonl:7: custom_id 'sum' is that of an earlier row too"
        in failures["sum", "duplicate_id"]["error"]["message"]
    )
    assert "max_new_tokens must be at least 1, got 0" in failures["bad", "bad_row"]["error"]["message"]
    assert failures["bad", "bad_row"]["input"] == {"custom_id": "bad", "prompt": "a", "max_new_tokens": 0}
    assert metrics(shared) == {"rows_read": 11, "rows_answered": 7, "rows_failed": 4}


def test_a_later_run_answers_only_new_rows(shared, first_run):
    shared.write("in/d.jsonl", {"custom_id": "new", "prompt": "7 + 5 ="})
    before = shared.records()
    assert shared.run("in/*.jsonl", "in/c.txt", resume=True) == 3
    assert metrics(shared) == {"rows_read": 12, "rows_answered": 1, "rows_done_before": 11}
    after = shared.records()
    assert after["new"]["text"] == " 12"
    assert {name: row for name, row in after.items() if name != "new"} == before
    with pytest.raises(
        InputError, match="--resume: .* was started with steps.model.generation.max_new_tokens 12, but it is 9 now"
    ):
        config = {**shared.config, "generation_config": {"max_new_tokens": 9}}
        Place(shared.directory, config).run("in/*.jsonl", resume=True)
    with pytest.raises(InputError, match="holds the output of a run; give another name, or --resume, or --overwrite"):
        shared.run("in/*.jsonl")
    used = OutputDirectory(str(shared.directory / "out")).locked()
    with used, pytest.raises(InputError, match="another run is writing into"):
        shared.run("in/*.jsonl", "in/c.txt", resume=True)
    assert not (shared.directory / "out" / ".parts").exists()


@pytest.mark.parametrize("form", ["text", "parquet"])
def test_other_forms(place, form):
    place.write("in.jsonl", ROWS[0], {"custom_id": "a\tb", "prompt": "Once upon a time", "max_new_tokens": 3})
    assert place.run("in.jsonl", pipeline={"format": form, "shards": 2}) == 0
    files = sorted((place.directory / "out").glob("answers-*"))
    assert len(files) == 2
    if form == "text":
        lines = sorted(line for path in files for line in path.read_text().splitlines())
        assert lines == ["a\\tb\t, there was", "sum\t 19"]
    else:
        import pyarrow.parquet

        rows = {row["custom_id"]: row for path in files for row in pyarrow.parquet.read_table(path).to_pylist()}
        assert (rows["sum"]["text"], rows["sum"]["token_ids"][-1]) == (" 19", 2)
        assert rows["a\tb"]["text"] == ", there was"
    assert place.run("in.jsonl", pipeline={"format": form}, resume=True) == 0
    assert metrics(place) == {"rows_read": 2, "rows_done_before": 2}


def test_tables_and_compressed_files(place):
    import gzip

    (place.directory / "a.csv").write_text("custom_id,prompt\nx,2 + 3 =\ny\n")
    (place.directory / "b.jsonl.gz").write_bytes(gzip.compress(b'{"custom_id": "z", "prompt": "12 + 7 ="}\n'))
    assert place.run("*.csv", "*.gz") == 3
    assert place.texts() == {"x": " 5", "z": " 19"}
    (failed,) = place.failures()
    assert "this row has 1 of 2 columns" in failed["error"]["message"]


@pytest.mark.slow
def test_an_ended_run_is_resumed(place):
    """By a signal that can be heard and one that cannot: no row is lost, none is there twice, and what was safe is not
    computed again.
    """
    rows = [{"custom_id": f"r{i}", "prompt": f"{i} + {i % 9} =", "max_new_tokens": 40} for i in range(240)]
    place.write("in/a.jsonl", *rows[:120])
    place.write("in/b.jsonl", *rows[120:])
    out = place.directory / "out"
    words = [sys.executable, str(ROOT / "run_inference.py"), "--config", str(DEMO), "--run_mode", "pipeline"]
    words += ["--predict_data", str(place.directory / "in" / "*.jsonl"), "--save_file", str(out)]
    words += ["--pipeline.checkpoint_seconds", "0.05", "--predict_batch_size", "4", "--runner", "DirectRunner"]

    def safe() -> list[dict]:
        lines = [line for path in out.glob(".parts/*.jsonl") for line in path.read_text().splitlines()]
        return [json.loads(line) for line in lines]

    def ended_by(number: signal.Signals, answers: int, *more: str) -> tuple[int, str]:
        run = subprocess.Popen([*words, *more], cwd=place.directory, stderr=subprocess.PIPE, text=True)
        limit = time.monotonic() + 120
        while len(safe()) < answers and run.poll() is None and time.monotonic() < limit:
            time.sleep(0.01)
        run.send_signal(number)
        error = run.communicate()[1]
        assert not list(out.glob("answers-*")), error
        return run.returncode, error.rpartition("error: ")[2].strip()

    code, line = ended_by(signal.SIGTERM, 10)
    first = len(safe())
    assert (code, 10 <= first < 240) == (143, True), line
    assert line.startswith(f"terminated; {first} answers are safe; resume with: ") and line.endswith("--resume")
    assert ended_by(signal.SIGKILL, first + 10, "--resume")[0] == -signal.SIGKILL
    before = safe()
    assert first < len(before) < 240
    done = subprocess.run([*words, "--resume"], cwd=place.directory, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers = place.records()
    assert set(answers) == {row["custom_id"] for row in rows}
    assert metrics(place)["answers_of_earlier_runs"] == len(before)
    for row in before:
        assert answers[row["custom_id"]]["text"] == row["answer"]["text"]
        assert answers[row["custom_id"]]["total_seconds"] == row["answer"]["total_seconds"]
    assert sorted(path.name.partition("-")[0] for path in out.iterdir()) == ["answers", "job.json", "metrics.json"]


BAD = [
    ({"values": ("none/*.jsonl",)}, InputError, "none/*.jsonl matches no file"),
    ({"options": ("--runner", "DircetRunner")}, InputError, "there is no runner 'DircetRunner'"),
    ({"options": ("--direct_num_worker", "2")}, ConfigError, "did you mean '--direct_num_workers'?"),
    ({"options": ("--direct_num_workers", "two")}, ConfigError, "invalid int value: 'two'"),
    ({"options": ("--streaming", "loose")}, ConfigError, "'loose' does not belong to a flag"),
    ({"pipeline": {"steps": {"a": {"config": "no_such_model"}}}}, InferenceError, "no_such_model"),
    ({"pipeline": {"steps": {"a": {"options": {"engine.thread": 2}}}}}, ConfigError, "did you mean 'threads'?"),
    (
        {"pipeline": {"steps": {"a": {"handler": "pipeline_handlers.Shoot"}}}},
        ConfigError,
        "has no Shoot; did you mean 'Shout'?",
    ),
    ({"pipeline": {"steps": {"a": {"handler": "handlres.Shout"}}}}, ConfigError, "handlres.Shout does not exist"),
    ({"pipeline": {"steps": {"a": {"handler": "pipeline_handlers.NoHandler"}}}}, ConfigError, "is not a ModelHandler"),
    (
        {"pipeline": {"steps": {"a": {"handler": "pipeline_handlers.Shout", "arguments": {"marc": 1}}}}},
        ConfigError,
        "Shout rejects these arguments",
    ),
    ({"pipeline": {"steps": {"a": {"arguments": {"larg_model": True}}}}}, ConfigError, "rejects these arguments"),
    (
        {"pipeline": {"steps": {"a": {"remote": {"url": "http://x/v1", "model": "m", "key_variable": "NO_SUCH_KEY"}}}}},
        ConfigError,
        "NO_SUCH_KEY is not set",
    ),
    ({"pipeline": {"report_file": "a.html"}}, InputError, "compares steps, and there is one"),
    ({"pipeline": {"report_file": "a.pdf"}}, InputError, "a.pdf is not an .html file"),
]


@pytest.mark.parametrize(("case", "kind", "message"), BAD, ids=lambda value: str(value)[:50])
def test_mistakes_are_found_before_the_pipeline_starts(place, case, kind, message):
    place.write("in.jsonl", ROWS[0])
    case = dict(case)
    with pytest.raises(kind) as caught:
        place.run(*case.pop("values", ("in.jsonl",)), **case)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (place.directory / "out").exists()


def test_an_input_without_a_row_and_a_runner_that_does_nothing(place, monkeypatch):
    place.write("in.jsonl")
    steps = {"steps": {"loud": {"handler": "pipeline_handlers.Shout"}}}
    with pytest.raises(InputError, match="the input has no rows"):
        place.run("in.jsonl", pipeline=steps)
    place.write("in.jsonl", ROWS[0])
    monkeypatch.setattr("inference.beam.pipeline.run.build", lambda pipeline, plan: None)
    with pytest.raises(InferenceError, match="the runner finished after reading 0 of 1 inputs"):
        place.run("in.jsonl", pipeline=steps, out="other")


@pytest.mark.parametrize("arguments", [{}, {"large_model": True}])
def test_answers_are_safe_before_their_batch_is_done(place, monkeypatch, arguments):
    """Whoever has the model writes them down: a batch may take hours."""
    from inference.beam.handlers.mindspore import MindSporeModelHandler

    noted = []
    theirs = MindSporeModelHandler.run_inference

    def run_inference(self, *given):
        results = theirs(self, *given)
        lines = [line for path in place.directory.glob("out/.parts/*.jsonl") for line in path.read_text().splitlines()]
        noted.append({json.loads(line)["custom_id"] for line in lines})
        return results

    monkeypatch.setattr(MindSporeModelHandler, "run_inference", run_inference)
    place.write("in.jsonl", *ROWS[:4], {"custom_id": "bad", "prompt": "word " * 3000})
    steps = {"only": {"arguments": arguments}}
    assert place.run("in.jsonl", pipeline={"steps": steps, "checkpoint_seconds": 60}) == 3
    assert noted == [{row["custom_id"] for row in ROWS[:4]}]


def test_check_reports_what_would_run(place):
    from inference import modes

    place.write("in.jsonl", ROWS[0])
    config = load_config(demo_with({"run_mode": "pipeline"}))
    said = modes.check(modes.Call(config, (str(place.directory / "in.jsonl"),), ("--runner", "DirectRunner")))
    assert said == "model: demo; 1 input; ok"


def test_the_command_line(tmp_path):
    """Prompts as arguments, answers on standard output; flags of Beam's among ours, and typos of either."""
    words = [sys.executable, str(ROOT / "run_inference.py"), "--config", "demo", "--run_mode", "pipeline"]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*words, *more], cwd=tmp_path, capture_output=True, text=True, env=dict(os.environ))

    done = run(
        "--predict_data", "12 + 7 =", "2 + 3 =", "--runner=DirectRunner", "--job_name", "x", "--max_new_tokens", "9"
    )
    assert (done.returncode, sorted(done.stdout.splitlines())) == (0, [" 19", " 5"]), done.stderr
    assert list(tmp_path.iterdir()) == []
    wrong = run("--predict_data", "a", "--runer", "DirectRunner")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "error: there is no flag --runer, here or in Beam; did you mean '--runner'?\n"
