"""What must not be shown is not shown, however it is spelled."""

from __future__ import annotations

import html
import json
import string
from importlib import import_module
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from inference.config.secrets import (
    PART,
    arguments_without_secrets,
    hide_secrets,
    is_secret_name,
    redact,
    without_secrets,
)

KEY = 'sk-Proj/"quoted"\\and+more=1234567890'
printable = st.text(string.digits + string.ascii_letters + string.punctuation, min_size=12, max_size=60)


def nested(text: str, times: int) -> str:
    for _ in range(times):
        text = json.dumps({"error": text})
    return text


def unicode_escaped(text: str) -> str:
    return "".join(f"\\u{ord(char):04x}" for char in text)


SPELLINGS = {
    "plain": lambda text: text,
    "json": lambda text: nested(text, 1),
    "json in json": lambda text: nested(text, 2),
    "json in json in json": lambda text: nested(text, 3),
    "unicode": unicode_escaped,
    "unicode in json": lambda text: nested(unicode_escaped(text), 1),
    "url": lambda text: quote(text, safe=""),
    "url in url": lambda text: quote(quote(text, safe=""), safe=""),
    "html": html.escape,
    "upper": str.upper,
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("part", [KEY, KEY[:12], KEY[-12:], KEY[7:25]])
def test_a_long_part_is_removed_in_every_spelling(spelling, part):
    told = SPELLINGS[spelling](f"<{part}>")
    shown = redact(f"before {told} after", KEY)
    assert shown.startswith("before ") and shown.endswith(" after") and "***" in shown
    for at in range(len(part) - 3):
        assert SPELLINGS[spelling](part[at : at + 4]).strip('"') not in shown


@given(printable, st.text(max_size=20), st.text(max_size=20), st.integers(0, 3))
@example("aaaaaaaaaaaa", "a", "", 0)
@example("\\\\\\\\\\\\\\\\\\\\\\\\", "", "", 2)
def test_no_part_of_a_secret_is_left(secret, before, after, times):
    shown = redact(nested(before + secret + after, times), secret)
    for _ in range(times):
        shown = json.loads(shown)["error"] if shown.startswith('{"error"') and _is_json(shown) else shown
    assert not any(secret[at : at + PART].lower() in shown.lower() for at in range(len(secret) - PART + 1))


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


@given(st.text(max_size=200))
def test_a_text_without_the_secret_is_unchanged(text):
    assert redact(text, "\0" * PART + "never") == text
    assert redact(text, None) == text


def test_a_short_key_is_removed_entirely():
    assert redact("the key abc is wrong", "abc") == "the key *** is wrong"
    assert redact("the key İ abc is wrong", "abc") == "the key İ *** is wrong"


def test_a_huge_text_is_cut_in_time():
    shown = redact("x" * (8 << 20) + "sk-secret-of-mine", "sk-secret-of-mine")
    assert shown.endswith("...") and "secret" not in shown


@pytest.mark.parametrize(
    ("name", "is_secret"),
    [
        ("api_key", True),
        ("--s3_secret_access_key", True),
        ("password", True),
        ("HF_TOKEN", True),
        ("x-api-key", True),
        ("azure_connection_string.account_key", True),
        ("key_variable", False),
        ("api_key_variable", False),
        ("eos_token_id", False),
        ("max_tokens", False),
        ("eos_token", False),
        ("s3_session_token", True),
        ("reference_key", False),
        ("tokenizer", False),
        ("keys", False),
    ],
)
def test_names_of_secrets(name, is_secret):
    assert is_secret_name(name) is is_secret


def test_settings_and_arguments_without_secrets():
    settings = {
        "remote": {"url": "https://me:word@host/v1?x=1", "extra": {"api_key": "k", "max_tokens": 5}},
        "list": ["ftp://user@host", 1, None, "https://h/p?key=x&api-version=2&sig=y"],
        "password": "",
    }
    assert without_secrets(settings) == {
        "remote": {"url": "https://***@host/v1?x=1", "extra": {"api_key": "***", "max_tokens": 5}},
        "list": ["ftp://***@host", 1, None, "https://h/p?key=***&api-version=2&sig=***"],
        "password": "",
    }
    given = ["--runner=X", "--s3_secret_access_key=abc", "--password", "word", "next", "s3://u:p@b", "--token", "--n=1"]
    assert arguments_without_secrets(given) == [
        *("--runner=X", "--s3_secret_access_key=***", "--password", "***", "next", "s3://***@b", "--token", "--n=1")
    ]


def test_print_config_hides_secrets(tmp_path):
    from inference.config import load_config

    path = tmp_path / "a.yaml"
    path.write_text(
        "pretrained_model_dir: demo\npipeline:\n  steps:\n    a: {remote: {url: 'http://x/v1?key=hidden1', model: m,"
        " extra: {api_key: hidden2}}}\n"
    )
    shown = load_config(str(path)).to_yaml()
    assert "hidden" not in shown and "a secret is not shown" in shown and 'model: "m"' in shown


def test_the_resume_command_hides_secrets():
    from inference.cli.main import resume_command

    line = resume_command(["--predict_data", "a b", "--s3_secret_access_key=hidden", "--max_new_tokens", "9"])
    assert "hidden" not in line and "--max_new_tokens 9" in line and "'a b'" in line


def test_errors_of_other_code_hide_secrets(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijkl")
    monkeypatch.setenv("SERVICE_PASSWORD", "short")
    text = "401 for hf_abcdefghijkl at https://me:word@host/x?sig=1 Bearer sk-12345678, a short answer, %73k-12345678"
    settings = {"auth": [{"api_key": "sk-12345678", "model": "sk-12"}], "max_tokens": "answer"}
    expected = "401 for *** at https://***@host/x?sig=*** Bearer ***, a short answer, ***"
    assert hide_secrets(text, settings) == expected


def test_error_lines_and_records_hide_secrets(monkeypatch, capsys):
    from inference.generation.record import failed_completion

    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijkl")
    record = failed_completion("a", 0, "model_failed", "ValueError: hf_abcdefghijkl is wrong")
    assert record.error is not None and record.error.message == "ValueError: *** is wrong"
    import_module("inference.cli.main")._fail("no access with hf_abcdefghijkl", None, 1)
    assert capsys.readouterr().err == "error: no access with ***\n"


def test_config_errors_hide_secrets():
    from inference.config import load_config
    from inference.errors import ConfigError

    for mapping in (
        {"pipeline": {"steps": {"a": {"config": ["https://me:hidden@host"]}}}},
        {"pipeline": {"steps": {"a": {"template": [{"api_key": "hidden"}]}}}},
        {"serve": {"certificate_key": 3, "port": "s3://u:hidden@b"}},
    ):
        with pytest.raises(ConfigError) as caught:
            load_config(mapping)
        assert "hidden" not in str(caught.value) and "must be" in str(caught.value)
