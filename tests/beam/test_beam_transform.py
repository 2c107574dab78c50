"""Our RunInference: dead letters by the row, models that are exchanged while batches run, and what is refused."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

pytest.importorskip("apache_beam", reason="needs Apache Beam: pip install 'mindspore-inference[beam]'")

import apache_beam as beam
from apache_beam.io.restriction_trackers import OffsetRange, OffsetRestrictionTracker
from apache_beam.ml.inference.base import (
    KeyedModelHandler,
    KeyModelMapping,
    KeyModelPathMapping,
    ModelHandler,
    ModelMetadata,
    PredictionResult,
)
from apache_beam.transforms.core import RestrictionProvider
from apache_beam.transforms.window import FixedWindows, TimestampedValue
from apache_beam.utils.timestamp import Timestamp
from beam_helpers import Sink, run

from inference.beam import MindSporeModelHandler, RunInference
from inference.beam.serving.hot_swap import ServedModel
from inference.errors import ConfigError, ModelNotFoundError

FOUR = {"max_new_tokens": 4}
ROWS = ["The dog", "", "The cat", [99999], {"prompt": "A", "temperature": -3}]


def answers(elements, handler, **arguments):
    """What RunInference gives for a list of elements."""
    arguments.setdefault("inference_args", FOUR)
    return lambda p: p | beam.Create(elements, reshuffle=False) | RunInference(handler, **arguments)


class Echo(ModelHandler):
    """Somebody else's handler: says which model it has; loses the rows that say so."""

    path = "none"

    def load_model(self):
        return _Model()

    def update_model_path(self, model_path=None):
        self.path = model_path or self.path

    def run_inference(self, batch, model, inference_args=None):
        inference_args["seen"] = inference_args.get("seen", 0) + 1
        return [PredictionResult(row, inference_args["seen"], self.path) for row in batch if row != "lost"]

    def batch_elements_kwargs(self):
        return {"min_batch_size": 1, "max_batch_size": 1}


class _Model:
    pass


def test_a_row_without_an_answer_is_its_own_dead_letter(demo):
    dead = Sink()

    def build(pipeline):
        keyed = pipeline | beam.Create(list(enumerate(ROWS)), reshuffle=False)
        transform = RunInference(KeyedModelHandler(demo), inference_args=FOUR).with_exception_handling()
        good, bad = keyed | transform
        _ = bad.failed_inferences | "Dead" >> beam.Map(dead)
        return good

    good, metrics = run(build)
    assert [(key, result.example) for key, result in good] == [(0, "The dog"), (2, "The cat")]
    assert all(result.inference["error"] is None for _, result in good)
    assert [batch for batch, _ in dead.rows] == [[(1, "")], [(3, [99999])], [(4, ROWS[4])]]
    messages = [error[1] for _, error in dead.rows]
    assert "empty" in messages[0] and "outside the vocabulary" in messages[1] and "temperature" in messages[2]
    assert metrics["failed_rows"] == 3 and "failed_batches_counter" not in metrics


def test_without_exception_handling_all_rows_arrive_in_order(demo):
    found, _ = run(answers(ROWS, demo))
    assert [result.example for result in found] == ROWS
    assert [result.inference["error"] is None for result in found] == [True, False, True, False, False]


def test_more_failed_rows_than_the_threshold_end_the_pipeline(demo):
    def build(threshold):
        def apply(pipeline):
            transform = RunInference(demo, inference_args=FOUR).with_exception_handling(threshold=threshold)
            return (pipeline | beam.Create(ROWS) | transform)[0]

        return apply

    assert len(run(build(0.7))[0]) == 2
    with pytest.raises(Exception, match="3 of 5 rows failed"):
        run(build(0.5))


def test_results_are_counted_and_arguments_copied():
    found, _ = run(answers(["a", "b"], Echo(), inference_args={}))
    assert [result.inference for result in found] == [1, 1]
    with pytest.raises(Exception, match="returned 0 results for a batch of 1"):
        run(answers(["a", "lost"], Echo(), inference_args={}))
    with pytest.raises(Exception, match="returned 0 results for a batch of 1"):
        run(answers([(1, "lost")], KeyedModelHandler(Echo()), inference_args={}))


def test_impossible_settings_are_rejected_before_the_pipeline_runs(demo, tmp_path):
    with pytest.raises(TypeError, match="intervall"):
        RunInference(demo, intervall=3)
    pipeline = beam.Pipeline()
    rows = pipeline | beam.Create(["a"])
    with pytest.raises(ConfigError, match="give one of them"):
        RunInference(demo, watch_model_pattern="x", model_metadata_pcoll=rows)
    with pytest.raises(ModelNotFoundError, match="matches no file"):
        _ = rows | RunInference(demo, watch_model_pattern=f"{tmp_path}/*.ckpt")
    with pytest.raises(ConfigError, match="max_new_tokens"):
        _ = rows | "again" >> RunInference(demo, inference_args={"max_new_tokens": "x"})


def test_a_side_input_replaces_the_model_and_a_bad_one_is_rolled_back(demo, put_version, caplog):
    good, broken = put_version("v2"), put_version("v3", broken=True)

    def build(pipeline):
        updates = [(2, ModelMetadata(good, "second")), (12, ModelMetadata(broken, "third"))]
        side = (
            pipeline | "Updates" >> beam.Create(updates) | beam.MapTuple(_at) | "W" >> beam.WindowInto(FixedWindows(10))
        )
        rows = pipeline | beam.Create([(2, "The dog"), (12, "The cat"), (22, "A")], reshuffle=False)
        rows = rows | "At" >> beam.MapTuple(_at) | beam.WindowInto(FixedWindows(10))
        return rows | RunInference(demo, inference_args=FOUR, model_metadata_pcoll=side)

    found, metrics = run(build)
    assert {(result.example, result.model_id) for result in found} == {
        ("The dog", good), ("The cat", good), ("A", good)
    }  # fmt: skip
    assert metrics["third_model_rollbacks"] == 1
    assert metrics["second_num_inferences"] == 3 and metrics["second_completion_tokens"] == 12
    assert metrics["second_model_byte_size"].sum == demo.load_model().num_bytes()
    assert f"{broken} is rejected, {good} stays in use" in caplog.text


def _at(seconds, value):
    return TimestampedValue(value, seconds)


def test_of_several_updates_in_a_window_the_latest_counts(demo, put_version):
    first, second = put_version("v1"), put_version("v2")

    def build(pipeline):
        updates = [(5, ModelMetadata(second, "late")), (2, ModelMetadata(first, "early"))]
        side = pipeline | "Updates" >> beam.Create(updates) | beam.MapTuple(_at)
        return pipeline | beam.Create(["The dog"]) | RunInference(demo, inference_args=FOUR, model_metadata_pcoll=side)

    assert [result.model_id for result in run(build)[0]] == [second]


@pytest.mark.parametrize("bad", ["reference", "judge"])
def test_a_model_that_fails_its_trial_is_rejected(demo, put_version, bad):
    path, question = put_version("v2"), {"prompt": "The dog", "max_new_tokens": 4}
    handler = MindSporeModelHandler(
        "demo",
        validation_rows=[{**question, "reference": "something else"} if bad == "reference" else question],
        validation_fn=(lambda records: f"{len(records)} is too few") if bad == "judge" else None,
    )
    handler.update_model_path(path)
    model = handler.load_model()
    reply = model.answer(["The dog"], FOUR)
    assert reply.model_id == "demo" and [event.model_id for event in reply.events] == [path]
    expected = "the reference is 'something else'" if bad == "reference" else "1 is too few"
    assert expected in reply.events[0].refused and not model.answer(["a"], FOUR).events


def test_models_are_replaced_by_key(demo, put_version):
    one, two, broken = put_version("v1"), put_version("v2"), put_version("v3", broken=True)

    def build(pipeline):
        handler = KeyedModelHandler(
            [KeyModelMapping(["a", "b"], demo), KeyModelMapping(["c"], MindSporeModelHandler("demo"))]
        )
        paths = [
            KeyModelPathMapping(["a"], one, "n1"),
            KeyModelPathMapping(["b"], two, "n2"),
            KeyModelPathMapping(["c"], broken, "n3"),
        ]
        side = pipeline | "Updates" >> beam.Create([paths])
        rows = pipeline | beam.Create([(key, "The dog") for key in "abc"], reshuffle=False)
        return rows | RunInference(handler, inference_args=FOUR, model_metadata_pcoll=side)

    found, metrics = run(build)
    assert {key: result.model_id for key, result in found} == {"a": one, "b": two, "c": "demo"}
    assert metrics["v3_model_rollbacks"] == 1


class _UntilSeen(RestrictionProvider):
    def initial_restriction(self, element):
        return OffsetRange(0, _MOST_ROWS)

    def create_tracker(self, restriction):
        return OffsetRestrictionTracker(restriction)

    def restriction_size(self, element, restriction):
        return 1


class _Rows(beam.DoFn):
    """Gives a text now and then, until all is seen that is to be seen; brings a version of the model to light when what
    it waits for is there.

    Args:
        versions: what each waits for, where it is, where it comes.
    """

    def __init__(self, versions):
        self._versions = versions

    @beam.DoFn.unbounded_per_element()
    def process(self, element, tracker=beam.DoFn.RestrictionParam(_UntilSeen())):  # noqa: B008
        if "v4" in _seen:
            tracker.try_claim(_MOST_ROWS - 1)
            return
        for after, hidden, target in self._versions:
            if after in _seen and Path(hidden).exists():
                os.utime(Path(hidden) / "model.safetensors")
                Path(hidden).rename(target)
        if tracker.try_claim(tracker.current_restriction().start):
            yield "The dog"
            tracker.defer_remainder(Timestamp.now() + 0.05)


# More rows than any machine answers in the time that a test has.
_MOST_ROWS = 1_000_000
# The versions of which an answer has been seen, and `refused`.
_seen: set[str] = set()


def _see(result):
    _seen.add(Path(result.model_id).parent.name)
    return result


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_a_watched_pattern_is_checked_repeatedly(put_version, tmp_path, demo, streaming, caplog, monkeypatch):
    put_version("v1")
    versions = []
    for after, name, broken in (("v1", "v2", False), ("v2", "v3", True), ("refused", "v4", False)):
        versions.append((after, put_version(f"hidden-{name}", broken), str(tmp_path / name)))
    refuse = ServedModel._refuse
    monkeypatch.setattr(ServedModel, "_refuse", lambda *arguments: (refuse(*arguments), _seen.add("refused")))

    def build(pipeline):
        return (
            pipeline
            | beam.Create(["rows"], reshuffle=False)
            | beam.ParDo(_Rows(versions))
            | RunInference(
                MindSporeModelHandler("demo", max_batch_size=1),
                inference_args=FOUR,
                watch_model_pattern=f"{tmp_path}/v*/model.safetensors",
                interval=0.2,
            )
            | "See" >> beam.Map(_see)
        )

    _seen.clear()
    found, metrics = run(build, *(["--streaming"] if streaming else []))
    names = [Path(result.model_id).parent.name for result in found]
    assert list(dict.fromkeys(names)) == ["v1", "v2", "v4"]
    assert metrics["v2_model_exchanges"] == metrics["v4_model_exchanges"] == 1 and metrics["v3_model_rollbacks"] >= 1
    assert {name: metrics[f"{name}_completion_tokens"] for name in set(names)} == {
        name: 4 * names.count(name) for name in set(names)
    }
    assert "v3/model.safetensors is rejected" in caplog.text


def test_a_pattern_is_also_watched_for_other_handlers(tmp_path):
    (tmp_path / "m1.pkl").write_text("1")

    def build(pipeline):
        rows = pipeline | beam.Create(range(6), reshuffle=False) | beam.ParDo(_Writes(str(tmp_path / "m2.pkl")))
        return rows | RunInference(Echo(), inference_args={}, watch_model_pattern=f"{tmp_path}/*.pkl", interval=0.01)

    found, metrics = run(build)
    assert [Path(result.model_id).name for result in found] == ["m1.pkl"] * 2 + ["m2.pkl"] * 4
    assert (metrics["m1_num_inferences"], metrics["m2_num_inferences"]) == (2, 4)


class _Writes(beam.DoFn):
    def __init__(self, path):
        self._path = path

    def process(self, number):
        time.sleep(0.02)
        # The element before this one is answered when this one is there.
        if number == 3:
            Path(self._path).write_text("2")
            os.utime(self._path, (time.time() + 5,) * 2)
        yield str(number)


@pytest.mark.parametrize("keyed", [False, True])
def test_the_answer_of_one_model_is_the_prompt_of_the_next(demo, keyed):
    """The sequential pattern of Beam's guide: `rows | RunInference(a) | RunInference(b)`."""
    first, second = MindSporeModelHandler("demo"), MindSporeModelHandler("demo", prepare=_of_answer)
    if keyed:
        first, second = KeyedModelHandler(first), KeyedModelHandler(second)
    rows = ["12 + 7 =", "word " * 3000, "2 + 3 ="]

    def build(pipeline):
        begun = pipeline | beam.Create(list(enumerate(rows)) if keyed else rows)
        return begun | "A" >> RunInference(first) | "B" >> RunInference(second)

    results, _ = run(build)
    results = [result[1] for result in results] if keyed else results
    by_prompt = {result.example.example: result for result in results}
    assert by_prompt["12 + 7 ="].inference["prompt"] == "19 + 1 ="
    assert by_prompt["12 + 7 ="].inference["text"] == " 20"
    failed = by_prompt["word " * 3000].inference["error"]
    assert failed["type"] == "bad_row" and failed["message"].startswith("prepare: ValueError: no answer")


def _of_answer(result):
    if result.inference["error"] is not None:
        raise ValueError("no answer")
    return f"{result.inference['text'].strip()} + 1 ="


def test_without_prepare_the_next_prompt_is_the_answer_as_it_is():
    from inference.answering.elements import num_bytes, prompt_from
    from inference.errors import InputError

    record = {"text": "an answer", "finish_reason": "stop", "error": None, "custom_id": "x"}
    assert prompt_from(PredictionResult("asked", record)).text == "an answer"
    assert prompt_from(PredictionResult("asked", "plain")).text == "plain"
    assert num_bytes(PredictionResult("asked", record)) == 9
    with pytest.raises(InputError, match="the model before has no answer: too long"):
        prompt_from(PredictionResult("asked", {**record, "error": {"message": "too long"}}))
