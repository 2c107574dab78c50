"""`--run_mode evaluate` on prompts with references, as a user meets it."""

from __future__ import annotations

import json
import math

import pytest

EVALUATE = ("--run_mode", "evaluate")
ROWS = [
    {"custom_id": "a", "prompt": "12 + 7 =", "reference": " 19", "slice": "sum"},
    {"custom_id": "b", "prompt": "2 + 3 =", "reference": " 6", "slice": "sum"},
    {"custom_id": "c", "prompt": "Translate to German: the big house", "references": [" das große Haus", " x"]},
    {"custom_id": "d", "messages": [{"role": "user", "content": "What is 2 + 3?"}], "reference": "5"},
]


@pytest.fixture(scope="module")
def compared(shared_cli):
    """Two models on the same rows, with a threshold that is kept and one that is not."""
    shared_cli.write("rows.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS))
    shared_cli.write(
        "random.yaml", "base_config: DEMO\nengine: {random_weights: true}\nseed: 1\n".replace("DEMO", DEMO)
    )
    return shared_cli.demo(
        *(*EVALUATE, "--predict_data", "rows.jsonl", "--compare_with", "random.yaml", "--max_new_tokens", 20),
        *("--result_file", "result.json", "--report_file", "page.html"),
        *("--min_score", "exact_match@sum=0.9", "exact_match=0.75", "--max_drop", "perplexity=0"),
        writes=("result.json", "page.html"),
    )


def demo_yaml() -> str:
    from inference.config.presets import find_preset

    return str(find_preset("demo"))


DEMO = demo_yaml()


def test_the_gate_decides_the_exit_code(compared):
    assert compared.code == 4
    assert "not kept: exact_match@sum >= 0.9: 0.5000" in compared.err
    assert "kept: exact_match >= 0.75: 0.7500" in compared.err
    assert "kept: perplexity drops by at most 0: -" in compared.err


def test_scores_go_to_standard_output(compared):
    lines = {line.split()[0]: line for line in compared.out.splitlines()}
    assert float(lines["exact_match"].split()[1]) == 0.75
    assert float(lines["exact_match@sum"].split()[1]) == 0.5
    assert lines["perplexity"].endswith(" better")


def test_the_result_has_every_answer(shared_cli, compared):
    result = json.loads((shared_cli.directory / "result.json").read_text())
    answers = {row["custom_id"]: row for row in result["answers"]}
    assert [answers[name]["text"] for name in "abcd"] == [" 19", " 5", " das große Haus", "5"]
    assert answers["b"]["scores"]["exact_match"] == 0
    assert result["scores"]["all"]["exact_match"]["value"] == 0.75
    assert result["compared_with"]["scores"]["all"]["exact_match"]["value"] == 0
    nats = {name: row["reference_nats"] / row["reference_tokens"] for name, row in answers.items()}
    assert max(nats["a"], nats["c"], nats["d"]) < 0.1 < 2 < nats["b"]
    total = sum(row["reference_nats"] for row in answers.values())
    tokens = sum(row["reference_tokens"] for row in answers.values())
    assert result["scores"]["all"]["perplexity"]["value"] == pytest.approx(math.exp(total / tokens))
    assert (shared_cli.directory / "page.html").read_text().startswith("<!DOCTYPE html>")


def test_a_result_can_be_compared_with(shared_cli, compared):
    """Also where a row of this run has no answer: it is too long."""
    rows = [*ROWS[:3], {**ROWS[3], "messages": [{"role": "user", "content": "word " * 2000}]}]
    shared_cli.write("long.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    words = (*EVALUATE, "--predict_data", "long.jsonl", "--compare_with", "result.json", "--max_new_tokens", 20)
    again = shared_cli.demo(*words, "--output_format", "json")
    assert again.code == 3
    assert "1 of 4 rows failed, the first: long.jsonl:4: the prompt has" in again.err
    (result,) = again.rows
    assert result["failed"] == 1
    assert result["compared_with"]["differences"]["all"]["exact_match"]["value"] == -0.25
    assert result["compared_with"]["differences"]["sum"]["exact_match"]["value"] == 0


def test_a_result_on_other_rows_is_rejected(shared_cli, compared):
    shared_cli.write("fewer.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS[:3]))
    words = (*EVALUATE, "--predict_data", "fewer.jsonl", "--compare_with", "result.json")
    assert shared_cli.demo(*words).error() == (
        "demo was evaluated on more rows, such as d; compare models on the same rows"
    )


def test_check_computes_nothing(cli):
    cli.write("rows.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS))
    checked = cli.demo(*EVALUATE, "--predict_data", "rows.jsonl", "--check").answered()
    assert checked.out == "demo: 4 rows with references; ok\n"


BAD = [
    (["--min_score", "exact_mach=1"], "did you mean 'exact_match'?"),
    (["--min_score", "exact_match"], "must be scores and numbers, such as exact_match: 0.9 or exact_match=0.9"),
    (["--min_score", "exact_match@translation=1"], "no row is in that slice; slices of these rows: sum"),
    (["--max_drop", "exact_match=0"], "max_drop compares two models, and there is one; give --compare_with"),
    (["--compare_with", "none.json"], "none.json cannot be read: No such file or directory"),
    (["--compare_with", "none.yaml"], "none.yaml"),
    (["--evaluate.metrics", "exact"], "there is no metric 'exact'; did you mean 'exact_match'?"),
    (
        ["--report_file", "none/page.html"],
        "--report_file: none/page.html cannot be created: there is no directory none",
    ),
    (["--evaluate.reference_key", "answer"], "rows.jsonl:1: no reference in this row"),
    (["--predict_data", "rows.txt"], "--predict_data: rows.txt is not a .jsonl file"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=lambda value: " ".join(value) if value else "")
def test_mistakes_are_found_before_a_model_loads(cli, arguments, message):
    cli.write("rows.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS))
    cli.write("rows.txt", "a prompt\n")
    error = cli.demo(*EVALUATE, "--predict_data", "rows.jsonl", "--evaluate.bootstrap_samples", 10, *arguments).error()
    assert message in error
