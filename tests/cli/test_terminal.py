"""What a terminal sees and a pipe does not: styles, labels, and lines that fit the window."""

from __future__ import annotations

import importlib
import io
import sys

import pytest

from inference import GenerationConfig
from inference.config import load_config
from inference.generation.text import EncodedPrompt
from inference.inputs.prompts import Prompt
from inference.modes import predict
from inference.terminal.output import say
from inference.terminal.progress import ProgressLine
from inference.terminal.style import styled


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")


def test_styles_are_only_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    assert styled("a", Terminal(), bold=True) == "\x1b[1ma\x1b[0m"
    assert styled("a", io.StringIO(), bold=True) == "a"
    for variable, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        with monkeypatch.context() as patch:
            patch.setenv(variable, value)
            assert styled("a", Terminal(), bold=True) == "a"


@pytest.mark.parametrize(
    ("stream", "expected"), [(Terminal(), "\x1b[2ma figure\x1b[0m\n"), (io.StringIO(), "a figure\n")]
)
def test_figures_are_dim_on_a_terminal(stream: io.StringIO, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    say("a figure")
    assert stream.getvalue() == expected


@pytest.mark.parametrize(
    ("run_mode", "stream", "expected"),
    [
        ("predict", Terminal(), "loading demo\n"),
        ("validate", Terminal(), ""),
        ("predict", io.StringIO(), ""),
    ],
)
def test_loading_is_reported_on_a_terminal(
    run_mode: str, stream: io.StringIO, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "stderr", stream)
    importlib.import_module("inference.cli.main")._say_what_loads(
        load_config({"pretrained_model_dir": "demo", "run_mode": run_mode})
    )
    assert stream.getvalue() == expected


@pytest.mark.parametrize("columns", [5, 30, 80])
def test_labels_and_progress_fit_the_window(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    text = "Once upon\na time " * 10
    label = predict._label(EncodedPrompt(0, Prompt("0", "x", text=text), text, [], GenerationConfig()))
    assert label.startswith("> Once upon a time") and label.endswith("...\n") and label.count("\n") == 1
    assert len(label.rstrip()) <= max(columns, predict.SHORTEST_LABEL + 3)
    terminal = Terminal()
    ProgressLine(terminal, in_place=True).show("x" * 200, 1.0)
    assert terminal.getvalue() == f"\r{'x' * (columns - 1)}\x1b[K"
