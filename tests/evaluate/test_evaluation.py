"""Results, thresholds and the page, on answers that no model gave."""

from __future__ import annotations

import itertools
import json
import math
import xml.dom.minidom
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import inference
from inference.config import GenerationConfig
from inference.errors import ConfigError, InputError
from inference.evaluate import html
from inference.evaluate.answers import Answered, encode_reference
from inference.evaluate.examples import Example, read_examples
from inference.evaluate.gate import Gate, check_gate
from inference.evaluate.report import report, verdict_of
from inference.evaluate.result import Evaluation, Sampling, read_evaluation
from inference.evaluate.scores import METRICS, choose_metrics
from inference.generation.text import Encoder
from inference.inputs.prompts import Prompt
from inference.tokenizer import load_tokenizer

CHOSEN = [METRICS[name] for name in ("exact_match", "token_f1", "perplexity", "latency")]
SAMPLING = Sampling(samples=200)


def evaluation(model: str, right: int, rows: int = 20, nats: float = 1.0) -> Evaluation:
    made = [
        Answered(
            f"row-{i}",
            ("even" if i % 2 == 0 else "odd",),
            f"question <{i}>",
            (f"answer {i}",),
            f"answer {i}" if i < right else "no & never",
            total_seconds=0.1 + i / 100,
            ttft_seconds=0.01,
            reference_nats=nats,
            reference_tokens=2,
        )
        for i in range(rows)
    ]
    return Evaluation(model, made, CHOSEN, SAMPLING)


def write(path, *rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_examples(tmp_path):
    name = write(
        tmp_path / "a.jsonl",
        {"custom_id": "x", "prompt": "p", "reference": " r", "slice": "sums", "max_new_tokens": 3},
        {"messages": [{"role": "user", "content": "q"}], "references": ["a", "b"], "slice": {"lang": "de", "n": 1}},
        {"prompt": [1, 2], "reference": "r", "slice": ["s", "t"]},
    )
    first, second, third = read_examples([name], "reference", "slice")
    assert (first.prompt.custom_id, first.references, first.slices) == ("x", (" r",), ("sums",))
    assert first.prompt.settings == {"max_new_tokens": 3}
    assert (second.references, second.slices) == (("a", "b"), ("lang=de", "n=1"))
    assert second.prompt.custom_id == f"{name}:2"
    assert (third.prompt.token_ids, third.slices) == ((1, 2), ("s", "t"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p"}, "a.jsonl:2: no reference in this row; 'reference' is a text or a list of texts"),
        ({"prompt": "p", "reference": 3}, "a.jsonl:2: no reference"),
        ({"prompt": "p", "reference": "r", "references": ["r"]}, "both 'reference' and 'references'"),
        ({"prompt": "p", "reference": "r", "slice": 1.5}, "a.jsonl:2: a slice is a text"),
        ({"prompt": "p", "reference": "r", "custom_id": "x"}, "custom_id 'x' is also that of "),
        ({"prompt": "p", "reference": "r", "max_lenght": 1}, "did you mean 'max_length'?"),
        ({"reference": "r"}, "a.jsonl:2: no prompt in this row"),
    ],
)
def test_invalid_examples(tmp_path, row, message):
    name = write(tmp_path / "a.jsonl", {"custom_id": "x", "prompt": "p", "reference": "r"}, row)
    with pytest.raises(InputError) as caught:
        read_examples([name], "reference", "slice")
    assert message in str(caught.value)


def test_slices_have_their_own_scores():
    found = evaluation("m", right=5)
    assert found.slices == ["all", "even", "odd"]
    assert found.scores["all"]["exact_match"].value == 0.25
    assert found.scores["even"]["exact_match"].value == 0.3
    assert found.scores["odd"]["exact_match"].value == 0.2


def test_a_result_is_read_back_from_its_file(tmp_path):
    first = evaluation("m", right=5)
    path = tmp_path / "result.json"
    path.write_text(json.dumps(first.as_dict()))
    again = read_evaluation(path, CHOSEN, SAMPLING)
    assert again.as_dict() == first.as_dict()


@pytest.mark.parametrize("content", ["{}", "[", '{"format": "mindspore-inference evaluation 1"}'])
def test_a_file_that_is_not_a_result(tmp_path, content):
    path = tmp_path / "result.json"
    path.write_text(content)
    with pytest.raises(InputError, match="is not the result of an evaluation"):
        read_evaluation(path, CHOSEN, SAMPLING)


def test_comparison():
    good, bad = evaluation("good", right=18, nats=0.5), evaluation("bad", right=6, nats=1.5)
    found = good.compare(bad).differences["all"]["exact_match"]
    assert found.value == pytest.approx(0.6)
    assert 0.3 < found.low < 0.6 < found.high < 0.9
    assert found.better == 1.0
    assert verdict_of("exact_match", found.low, found.high) == "better"
    perplexity = good.comparison.differences["all"]["perplexity"]
    assert perplexity.value < 0
    assert verdict_of("perplexity", perplexity.low, perplexity.high) == "better"
    assert verdict_of("perplexity", -perplexity.high, -perplexity.low) == "worse"
    assert verdict_of("exact_match", 0.0, 0.0) == "the same"
    assert verdict_of("exact_match", -0.1, 0.2) == "may be chance"


def test_models_are_compared_on_the_same_rows():
    with pytest.raises(InputError, match="b was not evaluated on row row-19"):
        evaluation("a", 5).compare(evaluation("b", 5, rows=19))
    with pytest.raises(InputError, match="b was evaluated on more rows, such as row-20"):
        evaluation("a", 5).compare(evaluation("b", 5, rows=21))


def kept(found: Evaluation, **thresholds) -> list[bool]:
    return [verdict.passed for verdict in check_gate(found, Gate(**thresholds))]


def test_thresholds():
    found = evaluation("m", right=5)
    assert kept(found, at_least={"exact_match": 0.25, "exact_match@even": 0.31}) == [True, False]
    assert kept(found, at_most={"perplexity": 1.65, "latency_p50": 0.1, "failed": 0}) == [True, False, True]


def test_a_zero_drop_has_no_sign():
    same = evaluation("m", right=5)
    same.compare(evaluation("m", right=5))
    (verdict,) = check_gate(same, Gate(max_drop={"exact_match": 0}))
    assert str(verdict) == "exact_match drops by at most 0: 0.0000"
    assert '<th class="number">m (compared)</th>' in report(same, [verdict])


def test_a_drop_must_be_significant():
    good, bad = evaluation("good", right=18, nats=0.5), evaluation("bad", right=6, nats=1.5)
    good.compare(bad)
    bad.compare(good)
    assert kept(good, max_drop={"exact_match": 0, "perplexity": 0}) == [True, True]
    assert kept(bad, max_drop={"exact_match": 0.1, "perplexity": 0.1, "exact_match@odd": 0.9}) == [False, False, True]
    near = evaluation("near", right=17)
    near.compare(evaluation("good", right=18))
    assert kept(near, max_drop={"exact_match": 0}) == [True]


@pytest.mark.parametrize(
    ("thresholds", "message"),
    [
        ({"at_least": {"exact_mach": 1}}, "did you mean 'exact_match'?"),
        ({"at_least": {"exact_match@evn": 1}}, "no row is in that slice; did you mean 'even'?"),
        ({"at_most": {"latncy_p90": 1}}, "did you mean 'latency_p90'?"),
        ({"max_drop": {"failed": 1}}, "a threshold names the unknown score 'failed'"),
        ({"max_drop": {"exact_match": 0}}, "give --compare_with"),
    ],
)
def test_meaningless_thresholds(thresholds, message):
    with pytest.raises(ConfigError) as caught:
        check_gate(evaluation("m", 5), Gate(**thresholds))
    assert message in str(caught.value)


def test_a_metric_whose_package_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said: list[str] = []
    assert [metric.name for metric in choose_metrics(None, said.append)] == [
        "exact_match",
        "token_f1",
        "perplexity",
        "latency",
    ]
    assert said == ["bleu and chrf are left out: they need the package sacrebleu (pip install sacrebleu)"]
    with pytest.raises(ConfigError, match="the metric chrf needs the package sacrebleu; pip install sacrebleu"):
        choose_metrics(["chrf"], said.append)
    with pytest.raises(ConfigError, match="did you mean 'exact_match'"):
        choose_metrics(["exact"], said.append)


class Links(HTMLParser):
    """What a page loads, and its visible words."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.texts: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [str(value) for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.texts.append(data)


def test_the_page_is_self_contained():
    first = evaluation("a<b>", right=18)
    first.compare(evaluation("other", right=6))
    html = report(first, check_gate(first, Gate(at_least={"exact_match": 0.95})))
    links = Links()
    links.feed(html)
    assert links.loads == [] and "script" not in links.tags
    assert "not kept: exact_match >= 0.95: 0.9000" in links.texts
    assert {"question <0>", "no & never"} <= set(links.texts)
    assert "b" not in links.tags  # of the model's name
    svgs = html.split("<svg")[1:]
    assert len(svgs) == len(CHOSEN) + 2
    assert "latency, s" in links.texts and "p50, s" in links.texts
    for svg in svgs:
        xml.dom.minidom.parseString("<svg" + svg.partition("</svg>")[0] + "</svg>")


def test_differences_between_texts_are_marked():
    assert html.Marked("a big <b> dog", "a dog").html() == 'a <mark title="">big &lt;b&gt; </mark>dog'
    assert html.Marked("a dog", "a <big> dog").html() == 'a <mark title="&lt;big&gt;">‸</mark>dog'
    assert html.Marked("one", 'two "x"').html() == '<mark title="two &#34;x&#34;">one</mark>'
    assert html.Marked("same", "same").html() == "same"
    long = "a " * 2000
    assert html.Marked(long, "b " * 2000).html() == long


def test_a_reference_of_a_model_with_an_encoder_is_a_separate_text():
    """Its end counts; what the encoder reads stands apart."""
    tokenizer = load_tokenizer(Path(inference.__file__).parent / "demo_t5")
    encoder = Encoder(tokenizer, len(tokenizer), 64, GenerationConfig(), decoder_start=0)
    prompt = Prompt("a", "a row", text="translate English to German: the big house")
    found = encode_reference(encoder, 0, Example(prompt, ("das große Haus", "another")))
    assert found.source == tokenizer.encode(prompt.text)
    assert found.tokens == [0, *tokenizer.encode("das große Haus")] and found.tokens[-1] == tokenizer.eos_token_id
    assert found.start == 1 and found.adapter == 0
    assert encode_reference(encoder, 0, Example(prompt, ("das große Haus " * 40,))) is None


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 8))
def test_ticks_are_round_and_within_their_axis(low, width, wanted):
    high = low + width
    marks = html.ticks(low, high, wanted)
    slack = 1e-6 * max(abs(low), abs(high), 1)
    assert all(low - slack <= mark <= high + slack for mark in marks)
    assert len(marks) <= wanted + 1
    steps = {float(f"{b - a:.6g}") for a, b in itertools.pairwise(marks)} if width > 1e-3 * abs(low) else set()
    assert len(steps) <= 1
    assert all(f"{step:e}"[0] in "125" for step in steps)


@given(st.floats(1e-9, 1e9))
def test_an_axis_ends_at_a_tick_above_its_values(value):
    end = html.round_up(value)
    assert value * (1 - 1e-6) <= end <= 3 * value
    assert math.isclose(html.ticks(0, end)[-1], end)


def test_bleu_is_reported_for_long_references_or_on_request():
    pytest.importorskip("sacrebleu")
    said: list[str] = []
    long, short = ("one two three four",), ("one", "two words")
    assert "bleu" in [metric.name for metric in choose_metrics(None, said.append, [long, short])]
    assert said == []
    assert "bleu" not in [metric.name for metric in choose_metrics(None, said.append, [long, short, short])]
    assert len(said) == 1 and said[0].startswith("bleu is left out: most references have fewer than 4 words")
    assert [metric.name for metric in choose_metrics(["bleu"], said.append, [short])] == ["bleu"]
