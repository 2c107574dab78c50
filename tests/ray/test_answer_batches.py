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

from inference.errors import ConfigError, InputError  # noqa: E402
from inference.ray import AnswerBatches  # noqa: E402

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


@pytest.mark.slow
def test_a_dataset_on_a_cluster_whose_worker_is_killed(tmp_path, answer):
    """Each row exactly once, with the texts of one process."""
    expected = dict(enumerate(answer({"prompt": _prompts()})["text"]))
    environment = {"env_vars": {"PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)])}}
    # A socket's path has 107 bytes at most, which pytest's own folders exceed.
    place = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    ray.init(num_cpus=2, include_dashboard=False, runtime_env=environment, log_to_driver=False, _temp_dir=place)
    try:
        rows = ray.data.from_items([{"number": n, "prompt": prompt} for n, prompt in enumerate(_prompts())])
        made = rows.repartition(6).map_batches(
            KillsItsActorOnce,
            fn_constructor_args=[str(tmp_path / "killed")],
            compute=ray.data.ActorPoolStrategy(size=1),
            num_cpus=1,
            batch_size=4,
        )
        found = made.take_all()
    finally:
        ray.shutdown()
        shutil.rmtree(place, ignore_errors=True)
    assert (tmp_path / "killed").exists()
    assert sorted(row["number"] for row in found) == sorted(expected)
    assert {row["number"]: row["text"] for row in found} == expected
    assert {row["threads"] for row in found} == {1}
    json.dumps([row["finish_reason"] for row in found])


def _prompts() -> np.ndarray:
    return np.array([f"{n} + {n + 1} =" for n in range(24)], object)
