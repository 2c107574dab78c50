"""Several copies of a model give the answers of one: rows shared out, order, failures, figures, and a lost copy."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_kill import records, texts, write_rows
from toy_job import toy_job

from examples import examples
from inference.engine.metrics import RunMetrics
from inference.errors import InferenceError
from inference.jobs.figures import metrics_of

ROWS = st.lists(
    st.fixed_dictionaries(
        {"prompt": st.text("ab ü", min_size=1, max_size=20), "max_new_tokens": st.integers(1, 12)},
        optional={
            "do_sample": st.booleans(),
            "temperature": st.floats(0.5, 2),
            "seed": st.integers(0, 99),
            "logprobs": st.integers(0, 3),
            "n": st.integers(1, 3),
            "stop": st.just(["a", "q"]),
        },
    ),
    min_size=1,
    max_size=30,
)


def answers(folder: Path, rows: list[dict[str, Any]], name: str, **job: Any) -> dict[int, dict[str, Any]]:
    source = folder / "in.jsonl"
    # A row that samples has a seed: otherwise it is drawn anew each time.
    source.write_text("\n".join(json.dumps({"seed": i, **row}) for i, row in enumerate(rows)))
    toy_job([str(source)], str(folder / name), overwrite=True, **job)
    return texts(folder / name)


@examples(25)
@given(ROWS, st.integers(2, 4), st.integers(1, 5), st.booleans())
def test_answers_are_those_of_one_copy(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[dict[str, Any]],
    replicas: int,
    rows_at_once: int,
    ordered: bool,
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    expected = answers(folder, rows, "one.jsonl", rows_at_once=rows_at_once)
    found = answers(folder, rows, "all.jsonl", rows_at_once=rows_at_once, replicas=replicas, ordered=ordered)
    assert found == expected
    assert not ordered or [row["row"] for row in records(folder / "all.jsonl")] == list(range(len(rows)))


def test_bad_rows_and_rows_too_long_for_the_cache(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", 60)
    sizes = {"num_blocks": 12, "rows_at_once": 3}
    one = toy_job([source], str(tmp_path / "one.jsonl"), **sizes)
    assert any("KV cache" in str(row["error"]) for row in records(tmp_path / "one.jsonl")), "no row was refused"
    all_ = toy_job([source], str(tmp_path / "all.jsonl"), **sizes, replicas=3)
    assert texts(tmp_path / "all.jsonl") == texts(tmp_path / "one.jsonl")
    assert (all_.rows, all_.failed) == (one.rows, one.failed)
    stopped = toy_job([source], str(tmp_path / "few.jsonl"), **sizes, replicas=3, max_errors=0)
    assert stopped.stopped and stopped.rows < 60


def test_every_replica_works_and_the_figures_add_up(tmp_path: Path) -> None:
    rows = [{"prompt": "x" * (1 + i % 7), "max_new_tokens": 10} for i in range(90)]
    alone, together = RunMetrics(), RunMetrics()
    answers(tmp_path, rows, "one.jsonl", metrics=alone)
    source = str(tmp_path / "in.jsonl")
    outcome = toy_job([source], str(tmp_path / "all.jsonl"), replicas=3, metrics=together)
    assert len(together.rows_by_replica) == 3 and sum(together.rows_by_replica) == 90
    assert min(together.rows_by_replica) >= 10, together.rows_by_replica
    for name in ("requests", "prompt_tokens", "completion_tokens"):
        assert getattr(together, name) == getattr(alone, name)
    assert together.row_seconds.count == together.ttft_seconds.count == 90
    figures = metrics_of(outcome, together, "toy", 0)
    assert figures["rows_by_replica"] == together.rows_by_replica and figures["decode_tokens_per_second"] > 0
    last = outcome.course.points[-1]
    assert last.completion_tokens == alone.completion_tokens and last.prompt_tokens == alone.prompt_tokens


def test_rates_of_replicas_add_up() -> None:
    one = RunMetrics(requests=1, prompt_tokens=10, prefill_seconds=1, decode_tokens=30, decode_seconds=2)
    other = RunMetrics(requests=2, prompt_tokens=60, prefill_seconds=2, decode_tokens=10, decode_seconds=1)
    one.add_replica(other)
    one.add_replica(RunMetrics())
    assert one.prefill_rate == pytest.approx(10 + 30) and one.decode_rate == pytest.approx(15 + 10)
    assert one.rows_by_replica == [1, 2, 0] and one.requests == 3


def test_one_prompt_streams_from_the_first_copy(tmp_path: Path) -> None:
    metrics, shown = RunMetrics(), io.StringIO()
    toy_job(["one prompt"], None, form="text", stdout=shown, replicas=3, metrics=metrics)
    assert metrics.rows_by_replica == [1, 0, 0] and shown.getvalue().startswith("one prompt")


def test_texts_stay_in_order(tmp_path: Path) -> None:
    prompts = [f"prompt {i} " * (1 + i % 3) for i in range(12)]
    one, all_ = io.StringIO(), io.StringIO()
    toy_job(prompts, None, form="text", stdout=one, rows_at_once=2)
    toy_job(prompts, None, form="text", stdout=all_, rows_at_once=2, replicas=3)
    assert all_.getvalue() == one.getvalue()


@pytest.mark.parametrize("steps", [0, 1, 7, 20])
def test_a_lost_replica_ends_the_job_which_can_be_resumed(tmp_path: Path, steps: int) -> None:
    source, out = write_rows(tmp_path / "in.jsonl", 60), tmp_path / "out.jsonl"
    toy_job([source], str(tmp_path / "clean.jsonl"))
    with pytest.raises(InferenceError, match="rank 2 is gone .*; its own log says why"):
        toy_job([source], str(out), replicas=3, lost_after=steps)
    there = texts(out) if out.exists() else {}
    assert len(there) < 60
    toy_job([source], str(out), replicas=2, resume=True)
    assert texts(out) == texts(tmp_path / "clean.jsonl")


def test_a_failed_job_ends_the_replicas(tmp_path: Path) -> None:
    """They stop at once, although they have rows; the toy's threads assert that they were told to."""
    rows = [{"prompt": "x" * 20, "max_new_tokens": 60} for _ in range(40)]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    metrics = RunMetrics()
    with pytest.raises(InferenceError, match="cannot be written"):
        toy_job([str(tmp_path / "in.jsonl")], "/dev/full", replicas=2, metrics=metrics)
    assert len(metrics.rows_by_replica) == 2
