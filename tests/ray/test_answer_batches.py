"""Ray's batches: columns in, columns with answers out; and a Dataset on a real cluster of this machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'mindspore-inference[ray]'")

from inference.config import Override  # noqa: E402
from inference.errors import ConfigError, InputError  # noqa: E402
from inference.ray import AnswerBatches  # noqa: E402
from inference.ray.cluster import RayCluster  # noqa: E402

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def answer() -> AnswerBatches:
    return AnswerBatches("demo", {"max_new_tokens": 8})


def test_columns_in_and_columns_out(answer):
    batch = {"prompt": np.array(["12 + 7 =", "", "2 + 3 ="], object), "kind": np.array([1, 2, 3])}
    found = answer(batch)
    assert list(found["text"]) == [" 19", None, " 5"] and list(found["kind"]) == [1, 2, 3]
    assert found["error"][0] is None and found["error"][1].startswith("bad_row: the row: the prompt is empty")
    assert list(found["finish_reason"]) == ["stop", "error", "stop"]
    assert found["completion_tokens"][1] == 0 and found["completion_tokens"].dtype.kind == "i"


def test_a_column_of_another_name_and_messages():
    batch = {"question": np.array(["12 + 7 ="], object)}
    assert list(AnswerBatches("demo", prompt_column="question")(batch)["text"]) == [" 19"]
    messages = np.array([np.array([{"role": "user", "content": "What is 2 + 3?"}], object), None], object)[:1]
    assert list(AnswerBatches("demo")({"messages": messages})["text"]) == ["5"]


def test_mistakes(answer):
    with pytest.raises(InputError, match="the dataset has no column 'prompt' and no column 'messages'; known: x"):
        answer({"x": np.array([1])})
    with pytest.raises(InputError, match="the dataset already has a column 'text'"):
        answer({"prompt": np.array(["a"], object), "text": np.array(["a"], object)})
    with pytest.raises(ConfigError, match="temprature"):
        AnswerBatches("demo", {"temprature": 1})


class KillsItsActorOnce(AnswerBatches):
    """Dies by SIGKILL at one row, the first time."""

    def __init__(self, marker: str):
        super().__init__("demo", {"max_new_tokens": 8})
        self._marker = Path(marker)

    def __call__(self, batch):
        if 13 in batch["number"] and not self._marker.exists():
            self._marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return {**super().__call__(batch), "threads": np.array([self.threads] * len(batch["number"]))}


@pytest.fixture(scope="module")
def cluster():
    """Ray on this machine, with two CPUs; its workers can import the tests."""
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent), str(ROOT / "tests" / "beam_pipeline")])
    # A socket's path has 107 bytes at most, which pytest's own folders exceed.
    place = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    environment = {"env_vars": {"PYTHONPATH": path}}
    how = {"num_cpus": 2, "include_dashboard": False, "log_to_driver": False, "_temp_dir": place}
    for left in (2, 1, 0):
        try:
            ray.init(runtime_env=environment, **how)
            break
        except Exception:  # Ray's own: a node has 30 s to start, which a busy machine may exceed
            ray.shutdown()
            if not left:
                raise
    try:
        yield RayCluster(None, 1)
    finally:
        ray.shutdown()
        shutil.rmtree(place, ignore_errors=True)


@pytest.mark.slow
def test_a_dataset_on_a_cluster_whose_worker_is_killed(tmp_path, answer, cluster):
    """Each row exactly once, with the texts of one process."""
    expected = dict(enumerate(answer({"prompt": _prompts()})["text"]))
    rows = ray.data.from_items([{"number": n, "prompt": prompt} for n, prompt in enumerate(_prompts())])
    made = rows.repartition(3).map_batches(
        KillsItsActorOnce,
        fn_constructor_args=[str(tmp_path / "killed")],
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=1,
        batch_size=8,
    )
    found = made.take_all()
    assert (tmp_path / "killed").exists()
    assert sorted(row["number"] for row in found) == sorted(expected)
    assert {row["number"]: row["text"] for row in found} == expected
    assert {row["threads"] for row in found} == {1}
    json.dumps([row["finish_reason"] for row in found])


@pytest.mark.slow
def test_a_call_is_retried_if_its_worker_dies(tmp_path, cluster):
    def doubled(number):
        marker = tmp_path / f"killed{number}"
        if number == 3 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 50:
            raise ValueError("not fifty")
        return 2 * number

    with cluster.connected():
        assert cluster.slots == 2
        assert sorted(cluster.map(doubled, range(20))) == list(range(0, 40, 2))
        assert (tmp_path / "killed3").exists()
        with pytest.raises(ValueError, match="not fifty"):
            list(cluster.map(doubled, range(49, 51)))


@pytest.mark.slow
def test_a_pipeline_on_a_cluster(tmp_path, answer, cluster, monkeypatch):
    pytest.importorskip("apache_beam")
    from inference.config import load_config
    from inference.config.presets import find_preset
    from inference.modes import pipeline
    from inference.modes.call import Call

    rows = [{"custom_id": str(n), "prompt": prompt} for n, prompt in enumerate(_prompts()[:8])]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in [*rows, {"prompt": ""}]))
    settings = {
        "run_mode": "pipeline",
        "pipeline.engine": "ray",
        "output.save_file": str(tmp_path / "out"),
        "generation_config.max_new_tokens": 8,
    }
    config = load_config(
        find_preset("demo"), overrides=[Override(key, value, "test") for key, value in settings.items()]
    )
    assert pipeline.run(Call(config, (str(tmp_path / "rows.jsonl"),))) == 3
    lines = [line for path in (tmp_path / "out").glob("answers-*") for line in path.read_text().splitlines()]
    found = {int(record["custom_id"]): record["text"] for record in map(json.loads, lines)}
    assert found == dict(enumerate(answer({"prompt": _prompts()[:8]})["text"]))


def test_options_of_ray():
    assert RayCluster(None, 1, ["NPU=1", "GPU=0.5"])._resources == {"resources": {"NPU": 1.0}, "num_gpus": 0.5}
    with pytest.raises(ConfigError, match="'spark.x' is not a resource of Ray; give NAME=NUMBER"):
        RayCluster(None, 1, ["spark.x"])


def _prompts() -> np.ndarray:
    return np.array([f"{n} + {n + 1} =" for n in range(24)], object)
