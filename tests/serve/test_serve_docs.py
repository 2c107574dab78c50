"""The commands of the pages about the server, the chat and structured answers work as they are written.

They run in this process: those of the command line through its own entry, those of clients against one server.
"""

from __future__ import annotations

import io
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from inference.cli.main import _run
from inference.cli.options import build_command, spread

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("serve.md", "chat.md", "structured.md")
ADDRESS = "http://127.0.0.1:8000"


def blocks(kind: str) -> list[str]:
    texts = [(DOCS / page).read_text(encoding="utf-8") for page in PAGES]
    return [found for text in texts for found in re.findall(rf"^```{kind}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)]


def commands(program: str) -> list[str]:
    """The commands of all ```sh blocks that call a program; a command may have several lines."""
    found = [block for block in blocks("sh") if block.startswith("curl")]
    lines = [line for block in blocks("sh") if not block.startswith("curl") for line in block.splitlines()]
    return [command for command in (*found, *lines) if program in command]


def run_cli(words: list[str]) -> int:
    return int(build_command(_run).main(spread(words), standalone_mode=False, obj=words) or 0)


def test_every_block_is_run() -> None:
    assert len(commands("curl")) >= 3 and len(commands("run_inference.py")) >= 5
    names = [command for block in blocks("sh") for command in block.splitlines() if command[:1].isalpha()]
    assert all(name.startswith(("curl ", "python run_inference.py ", "printf ")) for name in names), names


@pytest.mark.parametrize("command", commands("run_inference.py"))
def test_command(
    command: str, graph_mode: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before, _, line = command.rpartition("python run_inference.py ")
    words = shlex.split(line)
    # A server and a chat at a terminal would not end.
    is_checked = not before and "--run_mode" in words
    if is_checked:
        words += ["--check"]
    if before:
        typed = subprocess.check_output(["bash", "-c", before.rstrip(" |")], text=True)
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    assert run_cli(words) == 0
    out = capfd.readouterr().out
    if before:
        assert len(out.splitlines()) == 2
    elif "--choice" in words:
        assert out.rstrip("\n").endswith((" sunny", " rainy"))
    elif "--regex" in words:
        assert re.fullmatch(r" [0-9]+\n", out)
    else:
        assert is_checked and out.endswith("ok\n")


@pytest.mark.parametrize("command", commands("curl"))
def test_request(command: str, served: Any) -> None:
    text = command.replace(ADDRESS, served.url)
    assert text != command
    answer = json.loads(subprocess.check_output(["bash", "-c", text]))
    assert "error" not in answer, answer
    if answer["object"] == "list":
        assert len(answer["data"]) == 2
        return
    (choice,) = answer["choices"]
    message = choice["message"]
    if message.get("tool_calls"):
        assert json.loads(message["tool_calls"][0]["function"]["arguments"])["city"] in ("Oslo", "Rome")
    elif "response_format" in command:
        assert json.loads(message["content"])["name"] in ("Rex", "Bello")


def test_the_client_in_python(served: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = blocks("python")
    exec(compile(block.replace(ADDRESS, served.url), "docs/serve.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_prompts_that_are_typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On a terminal, `--predict_data -` says what it waits for."""
    from demo_model import demo_config

    from inference.modes.check import rows_of

    stdin = io.StringIO()
    monkeypatch.setattr(sys, "stdin", stdin)
    rows_of(demo_config(), ["-"])
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(stdin, "isatty", lambda: True)
    rows_of(demo_config(), ["-"])
    assert "type one prompt a line, and end with Ctrl-D" in capsys.readouterr().err
