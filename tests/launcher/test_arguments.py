"""The launcher's command line: MindFormers' forms, named options, and what is refused."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from inference.errors import InputError
from inference.launcher.arguments import Settings, build_command, make_settings
from inference.launcher.supervision import take_port

COMMAND = "python run_inference.py --predict_data 'I love Beijing, because'"
WORDS = ("python", "run_inference.py", "--predict_data", "I love Beijing, because")


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        ("", {}),
        ("2", {"workers": 2, "local_workers": 2}),
        ("1", {"workers": 1, "local_workers": 1}),
        ("2 8118", {"workers": 2, "local_workers": 2, "port": 8118}),
        (
            "4 8118 logs False 300",
            {
                "workers": 4,
                "local_workers": 4,
                "port": 8118,
                "log_dir": Path("logs"),
                "join": False,
                "timeout": 300,
            },
        ),
        (
            "4 2 192.168.0.1 8118 1 logs True 300",
            {
                "workers": 4,
                "local_workers": 2,
                "master_addr": "192.168.0.1",
                "port": 8118,
                "node_rank": 1,
                "log_dir": Path("logs"),
                "timeout": 300,
            },
        ),
    ],
)
def test_the_forms_of_mindformers(rest: str, expected: dict[str, Any]) -> None:
    assert make_settings([COMMAND, *rest.split()], {}) == Settings(WORDS, **expected)


def called(*arguments: str) -> Settings:
    found: list[Settings] = []
    done = CliRunner().invoke(build_command(found.append), arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return found[0]


def test_named_options_stand_beside_positions() -> None:
    settings = called("--workers", "2", "--port", "1234", "--tail", COMMAND, "--timeout=5", "--join", "no")
    assert settings == Settings(WORDS, 2, 2, port=1234, timeout=5, join=False, tail=True)
    settings = called(COMMAND, "4", "--local_workers", "2", "--master_addr", "h", "--port", "1", "--node_rank", "1")
    assert settings == Settings(WORDS, 4, 2, "h", 1, 1)
    assert list(settings.ranks) == [2, 3] and settings.log(3) == Path("output/msrun_log/worker_3.log")
    assert called(COMMAND) == Settings(WORDS, 8, 8)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=5))
def test_any_word_survives_its_quotes(words: list[str]) -> None:
    assert make_settings([shlex.join(["python", *words])], {}).command == ("python", *words)


@pytest.mark.parametrize(
    ("arguments", "named", "message"),
    [
        ([], {}, "there is no command; give it as one string"),
        ([COMMAND, *"123456789"], {}, "there are 10 positions, at most 9 are accepted"),
        ([COMMAND, "two"], {}, "workers must be a whole number from 1, got 'two'"),
        ([COMMAND, "0"], {}, "workers must be a whole number from 1, got '0'"),
        ([COMMAND, "2", "99999"], {}, "port must be a whole number from 0 to 65535, got '99999'"),
        ([COMMAND, "2", "1", "logs", "maybe"], {}, "join must be True or False, got 'maybe'"),
        ([COMMAND, "2"], {"workers": "2"}, "workers is given as a position and as --workers"),
        ([COMMAND, "4"], {"local_workers": "3"}, "4 workers cannot be 3 on each machine"),
        ([COMMAND, "4"], {"local_workers": "2"}, "2 of 4 workers are on this machine, and --master_addr is missing"),
        (
            [COMMAND, "4"],
            {"local_workers": "2", "master_addr": "h", "port": "0", "node_rank": "0"},
            "--port is missing",
        ),
        ([COMMAND, "4", "2", "h", "81", "2", "logs"], {}, "node_rank is 2, the machines are 0 to 1"),
        ([COMMAND, "2"], {"node_rank": "1"}, "node_rank is 1, and all 2 workers are on this machine"),
        (["python 'x"], {}, "the command cannot be split into words .No closing quotation.: python 'x"),
        ([" "], {}, "the command is empty"),
        (["no_such_program x"], {}, "the command's first word, no_such_program, is not a program; the command is"),
    ],
)
def test_invalid_input_is_rejected(arguments: list[str], named: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_settings(arguments, named)


def test_two_simultaneous_launchers_do_not_share_a_port() -> None:
    """The second gets one clear line if it asks for the port of the first, and another port if it asks for none."""
    settings = make_settings(["true", "2"], {})
    with take_port(settings) as first:
        again = replace(settings, port=first)
        with pytest.raises(
            InputError, match=rf"another launcher has taken 127.0.0.1:{first}; give another port, or none"
        ):
            take_port(again).__enter__()
        with take_port(settings) as second:
            assert second != first
    with take_port(again) as third:
        assert third == first
