"""What happens to rows before the models: each step alone, and all of them in a pipeline on both kinds of engines."""

from __future__ import annotations

import json
import pickle

import pytest

pytest.importorskip("apache_beam")

import cloudpickle
from apache_beam.ml.inference.base import ModelHandler, PredictionResult
from hypothesis import given
from hypothesis import strategies as st
from pipeline_place import demo_with
from test_cluster_run import HereCluster

from inference.beam.pipeline.chunks import Chunked, joined_record
from inference.beam.pipeline.counting import counting
from inference.beam.pipeline.preprocess import Preprocess, cuts_of
from inference.beam.pipeline.row_state import RowState
from inference.beam.pipeline.token_cuts import TokenCuts
from inference.config import load_config
from inference.config.preprocess_settings import ChunkSettings
from inference.errors import ConfigError
from inference.generation.record import Completion
from inference.inputs.prompts import Prompt


def row(text=None, key="a", data=None, **prompt):
    return RowState(key, "f.jsonl", 0, 1, Prompt(key, "f.jsonl:1", text=text, **prompt), data or {})


def steps(**settings):
    return Preprocess(load_config(demo_with({"pipeline": {"preprocess": settings}})))


def text_after(text, **settings):
    with counting() as counted:
        state = cloudpickle.loads(cloudpickle.dumps(steps(**settings)))(row(text))
    return (None if state is None else state.prompt.text), dict(counted)


def test_normalize():
    decomposed = "Cafe\u0301  au\tlait \r\n\n\n\n now "
    expected = ("Café au lait\n\nnow", {"rows_normalized": 1})
    assert text_after(decomposed, normalize={"form": "NFC", "whitespace": True}) == expected
    assert text_after("plain", normalize={"form": "NFC", "whitespace": True}) == ("plain", {})


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("write to ann.o'hara+x@mail.example.com now", "write to ann.o'[EMAIL] now"),
        ("card 4111 1111 1111 1111, call +49 30 1234 5678", "card [CARD], call [PHONE]"),
        ("DE89 3704 0044 0532 0130 00 from 192.168.0.1", "[IBAN] from [IP]"),
        ("see https://x.example/?a=1 or (030) 123-4567", "see [URL] or [PHONE]"),
        ("in 2024 we sold 12 of 300, id KD-77", "in 2024 we sold 12 of 300, id [CUSTOMER]"),
    ],
)
def test_mask(text, masked):
    kinds = ["email", "phone", "card", "iban", "ip", "url"]
    found, counted = text_after(text, mask={"kinds": kinds, "patterns": {"customer": r"KD-\d+"}})
    assert found == masked and counted["rows_masked"] == 1


def test_masking_covers_each_message_of_a_chat():
    chat = ({"role": "system", "content": "a@b.example"}, {"role": "user", "content": "I am c@d.example"})
    state = steps(mask={"kinds": ["email"]})(row(messages=chat))
    assert [message["content"] for message in state.prompt.messages] == ["[EMAIL]", "I am [EMAIL]"]


def test_filter():
    keep = steps(filter="words > 1 and row.lang == 'en'")
    with counting() as counted:
        assert keep(row("two words", data={"lang": "en"})) is not None
        assert keep(row("one", data={"lang": "en"})) is None and keep(row("zwei Worte", data={"lang": "de"})) is None
    assert counted["rows_filtered"] == 2
    failed = keep(row("no language"))
    assert failed.error["message"].startswith("f.jsonl:1: pipeline.preprocess.filter: 'dict object' has no attribute")


def test_truncate():
    text = "The cat ran over a big red house and saw two small dogs."
    tokens = len(cuts_of(load_config(demo_with({})))._units(text, 0)) and 6
    right, counted = text_after(text, truncate={"tokens": tokens})
    left, _ = text_after(text, truncate={"tokens": tokens, "side": "left"})
    assert text.startswith(right) and text.endswith(left) and 0 < len(right) < len(text) and 0 < len(left) < len(text)
    assert counted == {"rows_truncated": 1} and text_after("Hi", truncate={"tokens": tokens}) == ("Hi", {})
    assert steps(truncate={"tokens": 2})(row(token_ids=(1, 2, 3))).prompt.token_ids == (1, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask": {"kinds": ["mail"]}}, "there is no kind 'mail'; did you mean 'email'"),
        ({"mask": {"patterns": {"x": "("}}}, "mask.patterns.x is not a regular expression"),
        ({"filter": "words >"}, "filter is not an expression"),
        ({"chunk": {"tokens": 5, "overlap": 5}}, "overlap 5 is not less than tokens 5"),
        ({"normalise": {}}, "normalise"),
    ],
)
def test_mistakes(settings, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        steps(**settings)


@given(st.text(max_size=60), st.integers(1, 9), st.integers(0, 8))
def test_chunks_cover_a_text_within_the_limit(text, tokens, overlap):
    """With a byte as a token: exact, and independent of any tokenizer."""
    overlap = min(overlap, tokens - 1)

    def length(part):
        return len(part.encode("utf-8", "replace"))

    cuts = TokenCuts(length)
    chunks = cuts.chunks(text, tokens, 0)
    assert "".join(chunks) == text
    assert all(length(chunk) <= tokens or len(chunk) == 1 for chunk in chunks)
    place = 0
    for chunk in cuts.chunks(text, tokens, overlap):
        found = text.index(chunk, max(place - overlap, 0))
        assert found <= place and length(text[found:place]) <= overlap
        place = found + len(chunk)
    assert place == len(text)


def record(text, tokens=2, **changes):
    made = Completion(None, text=text, token_ids=(1,) * tokens, finish_reason="stop", prompt_tokens=3, model="m")
    return {**made.as_dict(), "completion_tokens": tokens, "total_seconds": 1.0, **changes}


class Echo(ModelHandler):
    def load_model(self):
        return None

    def run_inference(self, batch, model, inference_args=None):
        return [PredictionResult(prompt, record(f"<{prompt.text}>"), "m") for prompt in batch]


def test_the_answers_of_chunks_are_joined():
    config = load_config(demo_with({}))
    handler = pickle.loads(pickle.dumps(Chunked(Echo(), config, ChunkSettings(tokens=4, join="|"))))
    text = "The cat ran over a big red house."
    with counting() as counted:
        short, long = handler.run_inference([row("Hi").prompt, row(text).prompt], None)
    assert short.inference["text"] == "<Hi>" and counted["rows_chunked"] == 1
    pieces = long.inference["text"][1:-1].split(">|<")
    assert "".join(pieces) == text and len(pieces) == counted["chunks"] > 1
    assert long.inference["prompt_tokens"] == 3 * len(pieces)
    bad = record(None, error={"type": "bad_row", "message": "too long", "line": None})
    assert joined_record([record("a"), bad], "")["error"]["message"] == "chunk 2 of 2: too long"
    assert joined_record([record("a", finish_reason="length"), record("b")], "")["finish_reason"] == "length"


@pytest.mark.parametrize("cluster", [None, HereCluster()], ids=["beam", "cluster"])
def test_all_steps_in_a_pipeline(place, cluster, monkeypatch):
    monkeypatch.setattr("inference.beam.pipeline.cluster_run.LEAST_BYTES", 32)
    settings = {
        "normalize": {"whitespace": True},
        "mask": {"kinds": ["email"]},
        "filter": "characters > 2",
        "deduplicate": True,
        "chunk": {"tokens": 8, "join": "\n"},
    }
    prompts = ["12 + 7 =", "12  +  7 =", "x", "I am a@b.example and I", "a " * 12, "1 + 2 ="]
    place.write("a.jsonl", *[{"custom_id": str(n), "prompt": prompt} for n, prompt in enumerate(prompts)])
    assert place.run("a.jsonl", cluster=cluster, pipeline={"preprocess": settings}) == 0
    records = place.records()
    assert set(records) == {"0", "3", "4", "5"}
    assert records["0"]["text"] == " 19" and records["3"]["prompt"] == "I am [EMAIL] and I"
    figures = json.loads((place.directory / "out" / "metrics.json").read_text())["rows"]
    counted = {"rows_read": 6, "rows_filtered": 1, "rows_deduplicated": 1, "masked_email": 1, "rows_answered": 4}
    assert {name: figures[name] for name in counted} == counted and figures["rows_chunked"] >= 1
