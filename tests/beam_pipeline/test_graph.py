"""The graph of a pipeline's steps: what may be in it, and which rows go where."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("apache_beam")

from inference.beam.pipeline.steps import chosen, graph_of
from inference.beam.pipeline.templates import Template
from inference.config import load_config
from inference.errors import ConfigError, InputError


def graph(steps: dict[str, Any], splits: list[dict[str, float]] | None = None, **more: Any):
    config = load_config({"pipeline": {"steps": steps, "splits": splits or [], **more}})
    return graph_of(config.pipeline)


ONE: dict[str, Any] = {}


def after(*names: str, template: str = "{{ answer }}") -> dict[str, Any]:
    return {"after": list(names), "template": template}


def test_without_steps_there_is_one():
    found = graph({})
    assert [step.name for step in found.steps] == ["model"]
    assert (found.sinks, found.comes_together) == (("model",), False)


def test_each_step_follows_the_steps_it_waits_for():
    found = graph({"c": after("b"), "b": after("a"), "a": ONE})
    assert [step.name for step in found.steps] == ["a", "b", "c"]
    assert (found.sinks, found.comes_together) == (("c",), False)


def test_separate_branches_are_merged():
    assert graph({"a": ONE, "b": ONE}).comes_together
    assert graph({"a": ONE, "b": after("a"), "c": after("a")}).comes_together
    assert graph({"a": ONE, "b": ONE, "c": after("a", "b", template="{{ a }} {{ b }}")}).comes_together


def test_the_branches_of_a_split_count_as_one():
    """A row has one way, whichever it is; after the split `answer` is the answer of that way."""
    found = graph({"a": ONE, "b": ONE, "c": after("a", "b")}, [{"a": 0.25, "b": 0.75}])
    assert not found.comes_together
    assert found.steps[-1].parents == (("a", "b"),)
    assert found.steps[-1].answer_of == ("a", "b")


def test_branches_below_a_split_are_also_alternatives():
    steps = {"a": ONE, "b": ONE, "aa": after("a"), "bb": after("b"), "end": after("aa", "bb")}
    assert graph(steps, [{"a": 0.5, "b": 0.5}]).steps[-1].parents == (("aa", "bb"),)


def test_a_split_beside_a_step_for_all_rows():
    steps = {"all": ONE, "a": ONE, "b": ONE, "end": after("all", "a", "b", template="{{ all }} {{ answer }}")}
    found = graph(steps, [{"a": 0.5, "b": 0.5}])
    assert found.steps[-1].parents == (("all",), ("a", "b"))


@given(st.lists(st.text(max_size=8), min_size=1, max_size=20), st.floats(0.05, 0.95))
def test_a_name_always_takes_the_same_branch(names, share):
    shares = {"a": share, "b": 1 - share}
    assert [chosen(shares, 0, name) for name in names] == [chosen(shares, 0, name) for name in names]


def test_shares_are_kept_and_splits_are_independent():
    names = [f"row-{i}" for i in range(4000)]
    first = [chosen({"a": 0.3, "b": 0.7}, 0, name) for name in names]
    second = [chosen({"a": 0.3, "b": 0.7}, 1, name) for name in names]
    assert first.count("a") / 4000 == pytest.approx(0.3, abs=0.03)
    both = sum(one == other == "a" for one, other in zip(first, second, strict=True))
    assert both / 4000 == pytest.approx(0.09, abs=0.02)


HANDLER = {"handler": "some.Handler"}
BAD = [
    ({"a": after("b"), "b": after("a")}, [], "pipeline.steps: a, b wait for one another"),
    ({"a": after("a")}, [], "a wait for one another"),
    ({"a": ONE, "b": after("aa")}, [], "pipeline.steps.b.after: there is no step 'aa'; did you mean 'a'?"),
    ({"a": ONE, "b": {"after": "a"}}, [], "pipeline.steps: b comes after a and has no template"),
    ({"a": ONE, "b": after("a", template="{{ c }}")}, [], "b names 'c' in its template; known: a, answer, prompt, row"),
    ({"a": ONE, "b": after("a", template="{{ promt }}")}, [], "did you mean 'prompt'?"),
    ({"a": {"template": "{{ answer }}"}}, [], "a names 'answer' in its template; known: prompt, row"),
    ({"a": ONE, "b": after("a", template="{{ a")}, [], "pipeline.steps.b.template is not a valid template"),
    ({"a": ONE, "b": ONE, "c": after("a", "b")}, [], "c names 'answer' in its template; known: a, b, prompt, row"),
    ({"answer": ONE}, [], "answer is not a valid name for a step"),
    ({"a-b": ONE}, [], "a-b is not a valid name for a step"),
    ({"a": {"config": "x", "remote": {"url": "y"}}}, [], "a has both config and remote; give a step one model"),
    ({"a": {"result": "x.y"}}, [], "a has result, which is for steps with a handler of another project"),
    ({"a": {**HANDLER, "field": "x", "template": "y"}}, [], "a has both template and field"),
    ({"a": ONE, "b": ONE}, [{"a": 0.5, "c": 0.5}], "pipeline.splits: there is no step 'c'"),
    ({"a": ONE, "b": ONE}, [{"a": 0.5, "b": 0.6}], "the shares of a, b add up to 1.1; to 1"),
    ({"a": ONE, "b": ONE}, [{"a": 0.0, "b": 1.0}], "the share of a is 0"),
    ({"a": ONE, "b": ONE}, [{"a": 1.0}, {"a": 0.5, "b": 0.5}], "a is in two splits"),
    ({"a": ONE, "b": after("a")}, [{"a": 0.5, "b": 0.5}], "a, b do not come after the same steps"),
    (
        {"a": ONE, "b": ONE, "c": after("a", template="{{ b }}")},
        [{"a": 0.5, "b": 0.5}],
        "c names 'b' in its template; known: a, answer, prompt, row",
    ),
    (
        {"p": ONE, "a": ONE, "b": ONE, "c": after("p", "a", template="x")},
        [{"a": 0.5, "b": 0.5}],
        "c comes after p, a, which do not answer the same rows",
    ),
]


@pytest.mark.parametrize(("steps", "splits", "message"), BAD)
def test_invalid_graphs(steps, splits, message):
    with pytest.raises(ConfigError) as caught:
        graph(steps, splits)
    assert message in str(caught.value)


def test_output_is_a_step():
    assert graph({"a": ONE, "b": ONE}, output="b").output == "b"
    with pytest.raises(ConfigError, match="pipeline.output: there is no step 'c'"):
        graph({"a": ONE, "b": ONE}, output="c")


def test_a_key_that_no_step_has_is_unknown(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("pipeline:\n  steps:\n    a:\n      temlpate: x\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert "a.yaml:4: unknown key 'temlpate' in pipeline.steps.a; did you mean 'template'?" in str(caught.value)


def test_templates():
    filled = Template("{{ prompt }} {% if row.x %}({{ row.x }}){% endif %}", "here")
    assert filled.names == {"prompt", "row"}
    assert filled.render({"prompt": "p {{ x }}", "row": {"x": json.dumps({"a": 1})}}) == 'p {{ x }} ({"a": 1})'
    for source, values in [
        ("{{ row.x }}", {"row": {}}),
        ("{{ a }}", {"a": " "}),
        ("{{ a.__class__.__mro__ }}", {"a": 1}),
    ]:
        with pytest.raises(InputError, match="here "):
            Template(source, "here").render(values)
