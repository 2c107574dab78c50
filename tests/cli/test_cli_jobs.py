"""Jobs of the demo model: killed and interrupted, resumed, with bad rows, and the figures at their end."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

# What differs from run to run.
TIMING = ("ttft_seconds", "total_seconds", "cached_tokens")
ROWS = 40
FLAGS = ("--predict_data", "rows.jsonl", "--predict_batch_size", "4", "--save_file", "out.jsonl")
# Slow enough to be caught in the middle.
SLOW = ("--ignore_eos", "--max_new_tokens", "60")


def write_rows(cli, number: int = ROWS) -> None:
    rows = [{"prompt": f"Once upon a time there were {i}", "custom_id": f"r{i}", "seed": i} for i in range(number)]
    lines = [json.dumps(row | ({"do_sample": True} if row["seed"] % 2 else {})) for row in rows]
    lines[3] = "{"
    cli.write("rows.jsonl", "\n".join(lines) + "\n")


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def texts(path: Path) -> dict[int, dict[str, Any]]:
    data = path.read_bytes()
    assert data.endswith(b"\n")
    rows = [json.loads(line) for line in data.splitlines()]
    found = {row["row"]: {key: value for key, value in row.items() if key not in TIMING} for row in rows}
    assert len(found) == len(rows), "a row is there twice"
    return found


def wait_for_lines(path: Path, number: int, process: subprocess.Popen[bytes]) -> None:
    while not path.exists() or path.read_bytes().count(b"\n") < number:
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


@pytest.mark.slow
def test_killed_interrupted_and_resumed(cli):
    """As one clean run would have been: SIGKILL twice, Ctrl-C, a scheduler's SIGTERM, each time with other speed
    settings.
    """
    write_rows(cli)
    out = cli.directory / "out.jsonl"
    written = ("clean.jsonl", "clean.jsonl.job")
    clean = cli.demo(*FLAGS, *SLOW, "--save_file", "clean.jsonl", writes=written)
    assert clean.code == 3
    # More rows than are read ahead.
    assert re.search(r"^KV cache: ([\d,]+) positions", clean.err, re.M)[1] == "2,048", clean.err
    assert f"1 of {ROWS} rows failed, the first: rows.jsonl:4: not JSON" in clean.err
    words = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
    for lines, how in ((2, signal.SIGKILL), (9, signal.SIGINT), (17, signal.SIGTERM), (25, signal.SIGKILL)):
        arguments = ("--config", "demo", *FLAGS, *SLOW, "--resume", "--predict_batch_size", str(1 + lines % 3))
        process = cli.start(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        wait_for_lines(out, lines, process)
        process.send_signal(how)
        _, error = process.communicate(timeout=60)
        if how in words:
            assert process.returncode == 128 + how
            (line,) = [line for line in error.decode().splitlines() if line.startswith("error")]
            there = len(out.read_bytes().splitlines())
            assert re.match(
                rf"error: {words[how]}; {there} rows in out.jsonl, resume with: python \S+ --config demo", line
            )
            assert line.endswith("--resume") and line.count("--resume") == 1
        else:
            assert process.returncode == -signal.SIGKILL
        assert len(out.read_bytes().splitlines()) < ROWS
    last = cli.demo(*FLAGS, *SLOW, "--resume")
    assert last.code == 3
    assert re.search(r"^\d+ rows had been done before, \d+ were left$", last.err, re.MULTILINE)
    assert texts(out) == texts(cli.directory / "clean.jsonl")
    again = cli.demo(*FLAGS, *SLOW, "--resume")
    assert again.code == 3 and again.out == "" and f"{ROWS} rows had been done before, 0 were left" in again.err
    other = cli.demo(*FLAGS, *SLOW, "--resume", "--temperature", "0.5")
    assert "out.jsonl was started with generation.do_sample false, but it is true now; give the same" in other.error()
    assert "--resume continues a save file, --overwrite replaces it" in cli.demo(*FLAGS, "--resume", "--force").error()


def test_bad_rows_order_figures_and_tables(cli):
    table = "question,name\n12 + 7 =,a\nOnce upon a time,b\n,c\n2 + 3 =,d\n"
    cli.write("table.csv", table)
    flags = ("--prompt_column", "question", "--id_column", "name", "--ordered", "--no_echo", "--max_new_tokens", "20")
    done = cli.demo(
        *("--predict_data", "table.csv", "--save_file", "out.jsonl", "--metrics_file", "m.json", *flags),
        writes=("out.jsonl", "out.jsonl.job", "m.json"),
    )
    assert done.code == 3 and done.out == ""
    rows = records(cli.directory / "out.jsonl")
    assert [row["custom_id"] for row in rows] == ["a", "b", "c", "d"]
    assert [row["text"] for row in rows][::3] == [" 19", " 5"]
    assert rows[2]["error"]["line"] == 4 and not any("prompt" in row for row in rows)
    assert re.match(r"KV cache: .*\n1 of 4 rows failed, the first: table.csv:4: the prompt is empty", done.err)
    assert "3 prompts: " in done.err
    figures = json.loads((cli.directory / "m.json").read_text())
    assert (figures["model"], figures["rows"], figures["failed"], figures["requests"]) == ("demo", 4, 1, 3)
    for name in ("ttft_seconds", "tpot_seconds", "row_seconds"):
        assert 0 < figures[name]["p50"] <= figures[name]["p99"]
    assert figures["startup"]["mindspore"] > 0
    # The other forms have no place for a failure: it is told on stderr, and a row is still a line.
    lost = cli.demo("--predict_data", "table.csv", *flags[:4], "--output_format", "mindformers", "--max_errors", "0")
    assert lost.code == 3
    assert lost.err.splitlines()[0].startswith("table.csv:4: the prompt is empty")
    assert lost.err.splitlines()[-1] == "stopped: more than 0 rows failed"


def test_rows_that_failed_are_run_again(cli):
    """The row was mended in its place; the records stay in their order."""
    lines = ['{"prompt": "12 + 7 ="}', '{"prompt": "2 + 3 =", "custom_id": }', '{"prompt": " "}']
    cli.write("rows.jsonl", "\n".join(lines))
    job = ("--predict_data", "rows.jsonl", "--save_file", "out.jsonl", "--ordered")
    assert cli.demo(*job, writes=("out.jsonl", "out.jsonl.job")).code == 3
    lines[1] = '{"prompt": "2 + 3 =", "custom_id": "sum"}'
    cli.write("rows.jsonl", "\n".join(lines))
    again = cli.demo(*job, "--retry_failed")
    assert again.code == 3 and again.out == ""
    assert "1 row had been done before, 2 were left" in again.err and "1 of 2 rows failed" in again.err
    rows = records(cli.directory / "out.jsonl")
    assert [row["text"] for row in rows] == [" 19", " 5", None] and rows[1]["custom_id"] == "sum"
    for flags, message in (
        (("--force",), "--retry_failed continues a save file, --overwrite replaces it"),
        (("--run_mode", "evaluate"), "--retry_failed is for run_mode predict, not evaluate"),
    ):
        assert message in cli.demo(*job, "--retry_failed", *flags).error()
    assert "--resume is for run_mode predict and pipeline" in cli.demo("--resume", "--run_mode", "convert").error()


def test_a_terminal_that_is_closed(cli):
    """Its last line can be written nowhere; what is there is whole."""
    write_rows(cli)
    child, fd = pty.fork()
    if not child:
        os.chdir(cli.directory)
        words = cli.words(("--config", "demo", *FLAGS, *SLOW))
        os.execve(words[0], words, cli.environment)
    out = cli.directory / "out.jsonl"
    deadline = time.monotonic() + 120
    while not out.exists() or out.read_bytes().count(b"\n") < 3:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.close(fd)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + signal.SIGHUP
    assert 3 <= len(texts(out)) < ROWS


def test_mistakes_are_found_before_the_model_loads(cli):
    cli.write("t.csv", "a,b\n1,2\n")
    job = ("--predict_data", "a", "--save_file", "out.jsonl")
    assert (
        "t.csv has no column 'prompt'; name one with --prompt_column: a, b"
        in cli.demo("--predict_data", "t.csv", "--save_file", "out.jsonl").error()
    )
    assert "--metrics_file: none/m.json cannot be created" in cli.demo(*job, "--metrics_file", "none/m.json").error()
    assert "--resume continues a save file, and none is named" in cli.demo("--predict_data", "a", "--resume").error()
    assert (
        "--resume needs a save file of records"
        in cli.demo("--predict_data", "a", "--resume", "--save_file", "out.txt").error()
    )
    assert "output.max_errors must be at least 0, got -1" in cli.demo(*job, "--max_errors", "-1").error()


def test_a_full_disk_reports_how_to_resume(cli):
    write_rows(cli)
    words = " ".join(f"'{word}'" for word in cli.words(("--config", "demo", *FLAGS, *SLOW)))
    command = f"ulimit -f 4; trap '' XFSZ; {words} --overwrite"
    done = subprocess.run(
        ["bash", "-c", command], cwd=cli.directory, env=cli.environment, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "error" in line]
    there = len(texts(cli.directory / "out.jsonl"))
    message = "out.jsonl cannot be written: File too large"
    assert re.match(rf"error: {message}; {there} rows in out.jsonl, resume with: python .* --resume$", line)
    assert 0 < there < ROWS and "--overwrite" not in line


def test_a_terminal_shows_the_progress_of_a_job(cli):
    """The answers go to the file; the line is drawn in place and taken away at the end."""
    write_rows(cli)
    shown, status = on_a_terminal(cli, *FLAGS, *SLOW)
    assert status == 3 and len(texts(cli.directory / "out.jsonl")) == ROWS
    lines = re.findall(r"\r([^\r\n]*)\x1b\[K", shown)
    assert any(
        re.match(rf"\d+ of {ROWS} rows, 1 failed; [\d,]+ tok/s in, [\d,]+ out; 4 running", line) for line in lines
    )
    assert lines[-1] == ""
    assert '"custom_id"' not in shown


def test_a_terminal_shows_rows_one_after_the_other(cli):
    """Each under its prompt in bold; figures are dim. What loads is said before all else."""
    shown, status = on_a_terminal(cli, "--predict_data", "Once upon a time", "12 + 7 =")
    assert status == 0
    loads, first, story, second, total, *figures = shown.replace("\r\n", "\n").splitlines()
    assert loads == "\x1b[2mloading demo\x1b[0m"
    assert (first, second) == ("\x1b[1m> Once upon a time\x1b[0m", "\x1b[1m> 12 + 7 =\x1b[0m")
    assert story.startswith(", there was") and total == " 19"
    assert figures[0].startswith("\x1b[2m2 prompts: 13 tokens in, ") and figures[-1].endswith("\x1b[0m")
    assert "\x1b[K" not in shown


def on_a_terminal(cli, *arguments: str) -> tuple[str, int]:
    """All that appears on the terminal of a run, and its exit code."""
    child, fd = pty.fork()
    if not child:
        os.chdir(cli.directory)
        words = cli.words(("--config", "demo", *arguments))
        os.execve(words[0], words, {**cli.environment, "COLUMNS": "200", "TERM": "xterm"})
    data = b""
    while select.select([fd], [], [], 60)[0]:
        try:
            piece = os.read(fd, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        data += piece
    os.close(fd)
    return data.decode(), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
