"""Values out of files: types, ranges, what is said of a wrong one; and files that are none."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.errors import CheckpointError, ConfigError, TokenizerError
from inference.files import values
from inference.files.fields import Fields
from inference.files.read import check_regular, exists, is_file, read_json_object

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(2**64) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(ANYTHING)
def test_a_reader_returns_its_own_type_or_raises_a_named_error(value: object) -> None:
    for name, kind in (("SIZE", int), ("COUNT", int), ("TOKEN_ID", int), ("POSITIVE", float), ("TEXT", str)):
        try:
            read = getattr(values, name).read(value, "x: 'key'", TokenizerError)
        except TokenizerError as error:
            assert str(error).startswith("x: 'key' is ")
        else:
            assert type(read) is kind
            assert kind is str or (math.isfinite(read) and read == value)


@pytest.mark.parametrize(
    ("reader", "value"),
    [
        (values.SIZE, 0),
        (values.SIZE, True),
        (values.SIZE, 2**31),
        (values.SIZE, 2.0),
        (values.COUNT, -1),
        (values.TOKEN_ID, 1.5),
        (values.TOKEN_ID, 2**63),
        (values.TOKEN_ID, -1),
        (values.TOKEN_IDS, [1, math.inf]),
        (values.TOKEN_IDS, "2"),
        (values.POSITIVE, math.inf),
        (values.POSITIVE, math.nan),
        (values.POSITIVE, 0),
        (values.POSITIVE, 10**400),
        (values.EPSILON, 32),
        (values.EPSILON, math.inf),
        (values.FRACTION, 1.5),
        (values.TEXT, "\ud800"),
        (values.TEXT, b"bytes"),
        (values.FLAG, 1),
        (values.INTEGERS, [1, "2"]),
    ],
)
def test_values_out_of_range_are_rejected(reader: values.Reader, value: object) -> None:
    with pytest.raises(ConfigError, match="x is .*; it must be "):
        reader.read(value, "x")


@pytest.mark.parametrize(
    ("reader", "value", "read"),
    [
        (values.TOKEN_IDS, 3, [3]),
        (values.TOKEN_IDS, [3, 4], [3, 4]),
        (values.POSITIVE, 3, 3.0),
        (values.TEXT, "\u65e5", "\u65e5"),
        (values.SIZE, 2**31 - 1, 2**31 - 1),
    ],
)
def test_values_within_range_are_accepted(reader: values.Reader, value: object, read: object) -> None:
    assert reader.read(value, "x") == read


def test_a_long_value_is_shortened() -> None:
    with pytest.raises(ConfigError) as caught:
        values.SIZE.read("x" * 10**6, "key")
    assert len(str(caught.value)) < 200


def test_fields_name_the_file_and_the_key() -> None:
    fields = Fields({"a": None, "b": "x"}, "config.json", CheckpointError)
    assert fields.integer("a", 3) == 3
    with pytest.raises(CheckpointError, match="config.json: 'b' is 'x'; it must be a positive integer"):
        fields.integer("b")
    with pytest.raises(CheckpointError, match="config.json: 'c' is missing"):
        fields.integer("c")


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name, kind in (
        ("pipe", "a named pipe"),
        ("link", "a named pipe"),
        (".", "a directory"),
        ("/dev/zero", "a dev"),
    ):
        with pytest.raises(CheckpointError, match=f"is {kind}.*; it must be a regular file"):
            check_regular(tmp_path / name)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_json_object(tmp_path / "absent.json")


def test_names_that_no_file_system_accepts(tmp_path: Path) -> None:
    for name in ("x" * 5000, "a\0b"):
        assert not exists(tmp_path / name)
        assert not is_file(tmp_path / name)
        with pytest.raises(CheckpointError, match="cannot be read"):
            check_regular(tmp_path / name)


def test_json_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"\xef\xbb\xbf" + json.dumps({"a": 1}).encode())
    assert read_json_object(tmp_path / "config.json") == {"a": 1}
