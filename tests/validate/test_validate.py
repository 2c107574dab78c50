"""Profiles of prompts, expectations, and drift."""

from __future__ import annotations

import json
import math
import statistics
from array import array
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference import modes
from inference.config import load_config
from inference.errors import ConfigError, InputError
from inference.inputs.prompts import Prompt
from inference.modes.call import Call
from inference.validate.drift import kolmogorov_smirnov, total_variation
from inference.validate.profile import histogram, main_script, profile_of, spread
from inference.validate.rows import DataRow

LONG = "one two three four five six seven eight nine ten eleven twelve"


def rows(*texts: str | None) -> list[DataRow]:
    return [
        DataRow(f"a:{i}", None if text is None else Prompt(str(i), f"a:{i}", text=text), error="no prompt" * (not text))
        for i, text in enumerate(texts, 1)
    ]


def profile(*texts: str | None):
    given = [DataRow(row.where, row.prompt, row.label, row.error or None) for row in rows(*texts)]
    return profile_of(given, lambda number, prompt: (len(prompt.text.split()), len(prompt.text) > 50))


def test_counts():
    pytest.importorskip("datasketch")
    found = profile(LONG, LONG, f"{LONG} thirteen", "Привет мир", "a\x00b", None, "日本語 x").figures()
    expected = {"rows": 7, "invalid": 1, "duplicates": 1, "near_duplicates": 1, "control_characters": 1}
    assert {name: found[name] for name in expected} == expected
    assert found["over_context"] == 3 and found["duplicates_share"] == pytest.approx(1 / 7)
    assert found["script_share@LATIN"] == pytest.approx(4 / 6) and found["script_share@CJK"] == pytest.approx(1 / 6)
    assert (found["tokens_min"], found["tokens_max"], found["chars_max"]) == (1, 13, len(LONG) + 9)


def test_near_duplicates_are_not_counted_without_the_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = profile(LONG, LONG)
    assert found.near_duplicates is None and "near_duplicates" not in found.figures()


def test_outliers_are_far_outside_the_quartiles():
    found = profile(*("x" * length for length in (10, 11, 12, 13, 14, 300, 9)))
    assert found.outliers == [("a:6", 300)]


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=50))
def test_a_spread_equals_that_of_the_standard_library(values):
    found = spread(array("q", values))
    assert found["mean"] == pytest.approx(statistics.fmean(values))
    assert found["std"] == pytest.approx(statistics.pstdev(values), abs=1e-6)
    assert found["p50"] == pytest.approx(statistics.median(values))
    assert sum(count for _, _, count in histogram(array("q", values))) == len(values)


def test_no_spread_without_numbers():
    assert all(math.isnan(value) for value in spread(array("q")).values())
    assert profile(None).figures()["invalid_share"] == 1


def test_distances():
    one, other = array("q", [1, 2, 3, 4]), array("q", [3, 4, 5, 6])
    assert kolmogorov_smirnov(one, one) == 0 and kolmogorov_smirnov(one, array("q", [9])) == 1
    assert kolmogorov_smirnov(one, other) == kolmogorov_smirnov(other, one) == 0.5
    assert total_variation(Counter(a=1, b=1), Counter(a=3, b=1)) == 0.25
    assert total_variation(Counter(), Counter()) == 0 and total_variation(Counter(a=1), Counter()) == 1


def test_the_script_of_a_text():
    texts = {"hello, 1 мир": "LATIN", "привет a": "CYRILLIC", "1 + 2": "NONE", "日本": "CJK", "": "NONE"}
    assert {text: main_script(text) for text in texts} == texts


@pytest.fixture
def run(tmp_path, capsys):
    def run(*lines: dict, **validation) -> tuple[int, str, str]:
        path = tmp_path / "in.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        config = load_config(
            {"run_mode": "validate", "pretrained_model_dir": "inference/demo", "validation": validation}
        )
        code = modes.run(Call(config, (str(path),)))
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_expectations_are_a_gate(run, tmp_path, monkeypatch):
    lines = [{"prompt": "12 + 7 =", "kind": "sum"}, {"prompt": "The dog", "kind": "text"}, {"prompt": "word " * 3000}]
    page, result = tmp_path / "page.html", tmp_path / "result.json"
    code, out, err = run(
        *lines, label_key="kind", max={"over_context": 0}, report_file=str(page), result_file=str(result)
    )
    assert code == 4 and "not met: over_context <= 0: 1.0000" in err
    assert "label_share@sum" in out
    values = json.loads(result.read_text())
    assert values["expectations"] == [{"expectation": "over_context <= 0", "value": 1, "met": False}]
    (profiled,) = values["profiles"].values()
    assert profiled["labels"] == {"sum": 1, "text": 1} and profiled["figures"]["rows"] == 3
    text = page.read_text()
    assert "not met: over_context" in text and text.count("<svg") == 4 and "<script" not in text
    code, _, err = run(*lines, label_key="kind", min={"rows": 3, "label_share@sum": 0.4}, max={"label_share@other": 0})
    assert code == 0 and err.count("\nmet: ") + err.startswith("met: ") >= 2


def test_drift_from_other_prompts(run, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text('{"prompt": "2 + 2 ="}\n')
    same = [{"prompt": "2 + 2 ="}]
    assert run(*same, baseline=[str(other)], max={"drift_tokens": 0.1})[0] == 0
    assert run({"prompt": LONG}, baseline=[str(other)], max={"drift_tokens": 0.1})[0] == 4


@pytest.mark.parametrize(
    ("lines", "validation", "kind", "message"),
    [
        ([{"prompt": "a"}], {"min": {"row": 1}}, ConfigError, "there is no figure 'row'; did you mean 'rows'?"),
        ([{"prompt": "a"}], {"max": {"drift_chars": 1}}, ConfigError, "drift_chars needs something to compare with"),
        ([], {}, InputError, "there is no row to validate"),
        ([{"prompt": "a"}], {"report_file": "no/such/dir/x.html"}, InputError, "--validation.report_file"),
    ],
)
def test_mistakes(run, lines, validation, kind, message):
    with pytest.raises(kind) as caught:
        run(*lines, **validation)
    assert message in str(caught.value)


def test_an_invalid_row_is_counted_with_its_reason(run):
    code, out, _ = run({"prompt": "a"}, {"prompt": ""}, {"prompt": "b", "max_lenght": 3}, max={"invalid": 1})
    assert code == 4 and [line.split() for line in out.splitlines() if line.startswith("invalid ")] == [
        ["invalid", "2"]
    ]
