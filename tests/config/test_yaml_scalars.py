"""What plain text means, in a file and on a command line."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.config import parse_override, parse_value
from inference.config.print_config import flow
from inference.config.yaml_file import read_flow
from inference.config.yaml_scalars import resolve_plain
from inference.errors import ConfigError

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=4),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1.e-8", 1e-8),
        ("1.0e-5", 1e-5),
        ("5E3", 5000.0),
        (".5", 0.5),
        ("-3", -3),
        ("+3", 3),
        ("4_096", 4096),
        ("0x1F", 31),
        ("0o17", 15),
        ("0", 0),
        ("0.5", 0.5),
        ("-.inf", -math.inf),
        ("True", True),
        ("false", False),
        ("yes", True),
        ("OFF", False),
        ("", None),
        ("~", None),
        ("None", None),
        ("null", None),
        ("007", "007"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("1.2.3", "1.2.3"),
        ("1_", "1_"),
        ("e5", "e5"),
        ("-", "-"),
        (".", "."),
        ("float16", "float16"),
        ("9" * 500, "9" * 500),
    ],
)
def test_plain_text(text: str, value: object) -> None:
    resolved = resolve_plain(text)
    assert resolved == value
    assert type(resolved) is type(value)


@given(st.integers())
def test_every_integer_is_read_back(number: int) -> None:
    if len(str(number)) <= 400:
        assert resolve_plain(str(number)) == number


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_is_read_back_as_a_float(number: float) -> None:
    resolved = resolve_plain(repr(number))
    assert resolved == number
    assert isinstance(resolved, float)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("True", True),
        ("[1,2]", [1, 2]),
        ("1,2", [1, 2]),
        ("1, 2.5", [1, 2.5]),
        ("a,b", "a,b"),
        ('"3"', "3"),
        ("'True'", "True"),
        ('["a", 1e-5, null]', ["a", 1e-5, None]),
        ('{"factor": 8.0}', {"factor": 8.0}),
        ("{factor: 8.0, kind: [a]}", {"factor": 8.0, "kind": ["a"]}),
        ("[1,", "[1,"),
        ("# not a comment", "# not a comment"),
        ("key: value", "key: value"),
        ("a=b=c", "a=b=c"),
        (" padded text ", " padded text "),
        ("*alias", "*alias"),
        ("!!python/object:os.system", "!!python/object:os.system"),
        ("[!!python/object/apply:os.getcwd []]", "[!!python/object/apply:os.getcwd []]"),
    ],
)
def test_value_on_a_command_line(text: str, value: object) -> None:
    assert parse_value(text) == value


@given(JSON_VALUES)
def test_override_reads_json_back(value: object) -> None:
    override = parse_override(f"a.b={json.dumps(value)}")
    assert override.path == "a.b"
    assert override.value == value


@given(JSON_VALUES)
def test_printed_value_reads_back(value: object) -> None:
    back = read_flow(flow(value))
    assert back == value
    assert type(back) is type(value)


@given(st.text())
def test_any_override_text_is_parsed(text: str) -> None:
    assert parse_override(f"k={text}").text == text


@pytest.mark.parametrize("assignment", ["abc", "=1", "  =1", ""])
def test_override_without_key_or_value(assignment: str) -> None:
    with pytest.raises(ConfigError, match="--options: .* is not of the form key=value"):
        parse_override(assignment)
