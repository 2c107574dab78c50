"""Workers in processes of their own: one model for all of them, and what becomes of rows when one is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("apache_beam", reason="needs Apache Beam: pip install 'mindspore-inference[beam]'")

import apache_beam as beam
from beam_helpers import ROOT

from inference.beam import MindSporeModelHandler, run_to_the_end

HERE = Path(__file__).parent


@pytest.mark.slow
def test_a_killed_worker_loses_no_row_and_a_large_model_is_loaded_once(tmp_path):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PROTOCOL_BUFFERS")}
    done = subprocess.run(
        [sys.executable, HERE / "several_processes.py", tmp_path],
        capture_output=True,
        text=True,
        env={**environment, "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["killed"] and "a worker died" in done.stderr
    assert sorted(key for key, _, _ in said["answers"]) == list(range(24))
    assert all(text for _, text, _ in said["answers"])
    # One for each of the two runs, though each had two workers that answered rows.
    assert len(said["loads"]) == 2
    assert len({worker for _, _, worker in said["answers"]}) == 2


@pytest.mark.slow
def test_models_shared_by_processes_are_replaced(tmp_path, put_version):
    """One for all processes, and two copies: each is exchanged once, for all of them, and a bad one by none."""
    put_version("v1")
    put_version("hidden-v2")
    put_version("hidden-v3", broken=True)
    done = subprocess.run(
        [sys.executable, HERE / "several_refreshes.py", tmp_path],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    said = json.loads(done.stdout.splitlines()[-1])
    counters, loads = said["counters"], said["loads"]
    for way, models, pieces in (("large", ["v1", "v2"], 1), ("copies", ["v1", "v2"], 2), ("side", ["v1"], 1)):
        rows = [(number, Path(model), worker) for name, number, model, _, worker in said["answers"] if name == way]
        assert sorted(number for number, _, _ in rows) == list(range(40)), way
        assert sorted({path.parent.name if path.suffix else path.name for _, path, _ in rows}) == models
        assert len({worker for _, _, worker in rows}) == 2
        names = models if way != "side" else ["first"]
        assert sum(counters[f"{way}/{name}_num_inferences"] for name in names) == 40
        assert [loads[f"{way}/{name}_model_byte_size"] for name in names] == [pieces] * len(names)
        if way != "side":
            assert counters[f"{way}/v2_model_exchanges"] == pieces
            assert counters[f"{way}/v3_model_rollbacks"] >= pieces
    assert len({text for *_, text, _ in said["answers"]}) == 1


FOLLOWER = (
    "from inference.beam.serving.worker_lifetime import follow; import time\n"
    "follow(); print('here', flush=True); time.sleep(60)"
)
LEADER = """
import subprocess, sys, time
from inference.beam.serving.worker_lifetime import follow, leading
follow()
with leading():
    subprocess.Popen([sys.executable, "-c", sys.argv[1]])
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_the_process_that_runs_the_pipeline(number):
    words = [sys.executable, "-c", LEADER, FOLLOWER]
    leader = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert leader.stdout.readline() == "here\n"
    leader.send_signal(number)
    # The pipe is open for as long as one of both is there.
    assert leader.communicate(timeout=30)[0] == ""
    assert leader.returncode == -number


def test_an_error_other_than_a_worker_death_is_not_retried():
    built = []

    def build(pipeline):
        built.append(pipeline)
        _ = pipeline | beam.Create([1]) | beam.Map(lambda number: number / 0)

    with pytest.raises(Exception, match="division by zero"):
        run_to_the_end(build)
    assert len(built) == 1


def test_copies_are_separate_models_even_after_replacement(demo, put_version):
    handler = MindSporeModelHandler("demo", model_copies=2)
    assert handler.share_model_across_processes() and handler.model_copies() == 2
    first, second = handler.load_model(), handler.load_model()
    assert first._current[0] is not second._current[0]
    assert demo.load_model()._current[0] is demo.load_model()._current[0]
    taken = demo.candidate(put_version("v2"))
    assert first.exchange(taken) and second.exchange(taken)
    assert first._current[0] is not second._current[0]
    assert first.answer(["The dog"]).answers.records[0]["text"] == second.answer(["The dog"]).answers.records[0]["text"]
