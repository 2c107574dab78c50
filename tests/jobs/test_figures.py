"""What is said about a job: the line while it runs, the figures and the picture at its end."""

from __future__ import annotations

import io
import json
import os
import sys
import threading
from pathlib import Path

import pytest
from test_kill import write_rows
from toy_job import toy_job

from inference.engine.metrics import RunMetrics
from inference.errors import InferenceError, InputError
from inference.jobs.figures import check_plot, check_target, metrics_of, write_metrics, write_plot
from inference.jobs.progress import POINTS, Course, Figures
from inference.jobs.save_file import check_writable
from inference.terminal.progress import ProgressLine, byte_progress


def test_the_line() -> None:
    figures = Figures(1204, 1000, 3, 10_000, False, 5000, 820, 8, 12, 0.426)
    assert figures.line(10.0) == (
        "1,204 of about 10,000 rows, 3 failed; 500 tok/s in, 82 out; 8 running, 12 waiting; KV cache 43%; ETA 0:07:11"
    )
    # (10,000 - 1,204) rows at 204 in ten seconds.
    assert round((10_000 - 1204) / 20.4) == 7 * 60 + 11
    assert Figures(5).line(0).startswith("5 rows, 0 failed; 0 tok/s in") and "ETA" not in Figures(5).line(0)
    assert Figures(10, expected=10, exact=True, prompt_tokens=1).line(7200).endswith("; ETA 0:00:00")


def test_in_place_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "12")
    out = io.StringIO()
    line = ProgressLine(out, in_place=True)
    assert not line.is_due
    line.clear()
    assert out.getvalue() == ""
    line.show("more than fits", 1)
    assert on_screen(out.getvalue()) == "more than f" and not line.is_due
    line.show("short", 2)
    assert on_screen(out.getvalue()) == "short"
    line.clear()
    line.clear()
    assert on_screen(out.getvalue()) == "" and "\n" not in out.getvalue()
    line.show("again", 3)
    assert on_screen(out.getvalue()) == "again"
    line.clear()


def on_screen(written: str) -> str:
    """What a terminal of one line shows; ESC [K clears the line from the cursor on."""
    shown = ""
    for text in written.split("\r"):
        kept, cleared, _ = text.partition("\x1b[K")
        shown = kept if cleared else kept + shown[len(kept) :]
    return shown.rstrip()


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_loading_is_shown_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    show = byte_progress(screen, 4 << 30)
    show("a.safetensors", 1 << 30)
    show("b.safetensors", 3 << 30)
    assert "4.00G" in screen.getvalue() and on_screen(screen.getvalue()) == ""
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    plain = io.StringIO()
    show = byte_progress(plain, 4 << 30)
    show("a.safetensors", 1 << 30)
    now = 6.0
    show("b.safetensors", 1 << 30)
    assert plain.getvalue() == "loading b.safetensors: 2.0 of 4.0 GiB\n"


def test_plain_progress_lines_become_less_frequent(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    line, said = ProgressLine(io.StringIO(), in_place=False), []
    for second in range(2 * 3600):
        now = float(second)
        if line.is_due:
            line.show("x", now)
            said.append(second)
    assert said[:3] == [10, 20, 30] and max(b - a for a, b in zip(said, said[1:], strict=False)) <= 300
    assert 20 < len(said) < 60


def test_the_course_stays_small() -> None:
    course = Course()
    for step in range(100_000):
        if course.is_due(step / 10):
            course.add(step / 10, Figures(done=step))
    assert POINTS / 2 <= len(course.points) <= POINTS
    assert [p.rows for p in course.points] == sorted(p.rows for p in course.points)
    assert course.points[-1].seconds > 9900


@pytest.fixture
def ran(tmp_path: Path):
    metrics = RunMetrics()
    outcome = toy_job([write_rows(tmp_path / "in.jsonl", 60)], str(tmp_path / "out.jsonl"), metrics=metrics)
    return outcome, metrics


def test_the_figures_of_a_job(tmp_path: Path, ran) -> None:
    outcome, metrics = ran
    write_metrics(tmp_path / "m.json", metrics_of(outcome, metrics, "toy", 7))
    figures = json.loads((tmp_path / "m.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    good = [row for row in rows if row["error"] is None]
    assert (figures["rows"], figures["failed"], figures["rows_of_earlier_runs"]) == (60, 60 - len(good), 7)
    assert figures["prompt_tokens"] == sum(row["prompt_tokens"] for row in good)
    assert figures["completion_tokens"] == sum(row["completion_tokens"] for row in good)
    assert figures["tokens_out_per_second"] == pytest.approx(figures["completion_tokens"] / outcome.seconds)
    for name, field in (("row_seconds", "total_seconds"), ("ttft_seconds", "ttft_seconds")):
        times = sorted(row[field] for row in good)
        assert figures[name]["p50"] == pytest.approx(times[(len(times) + 1) // 2 - 1], rel=0.006, abs=2e-6)
        assert figures[name]["max"] == pytest.approx(times[-1], abs=2e-6)
    tpot = figures["tpot_seconds"]
    assert 0 < tpot["p50"] <= tpot["p90"] <= tpot["p99"] <= tpot["max"]
    assert not list(tmp_path.glob(".*"))


def test_figures_that_cannot_be_written(tmp_path: Path, ran) -> None:
    for path, message in ((tmp_path, "is a directory"), (tmp_path / "no" / "m.json", "there is no directory")):
        with pytest.raises(InputError, match=f"--metrics_file: .*{message}"):
            check_target(path, "--metrics_file")
    with pytest.raises(InferenceError, match="cannot be written"):
        write_metrics(tmp_path / "gone" / "m.json", {})


def test_figures_for_a_pipe_or_through_a_link_leave_it_one(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link.json"
    os.mkfifo(pipe)
    link.symlink_to("m.json")
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    write_metrics(pipe, {"rows": 3})
    reader.join(60)
    for _ in range(2):
        write_metrics(link, {"rows": 3})
    assert json.loads(read[0]) == json.loads((tmp_path / "m.json").read_bytes()) == {"rows": 3}
    assert pipe.is_fifo() and link.is_symlink() and len(list(tmp_path.iterdir())) == 3


def test_a_plot_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The module itself, not only its package: another test may have imported it, and it would be taken from there.
    for name in ("matplotlib", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match="^--metrics_plot needs the package matplotlib; pip install matplotlib$"):
        check_plot(tmp_path / "p.png")


@pytest.mark.slow
def test_a_plot(tmp_path: Path, ran) -> None:
    pytest.importorskip("matplotlib")
    check_plot(tmp_path / "p.png")
    write_plot(tmp_path / "p.png", *ran, "toy")
    data = (tmp_path / "p.png").read_bytes()
    assert data.startswith(b"\x89PNG") and len(data) > 10_000
    with pytest.raises(InputError, match="is of no known kind; known: .*png"):
        check_plot(tmp_path / "p.xyz")


def test_a_target_without_permission_is_rejected_by_the_check(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: not (Path(path) == tmp_path and mode == os.W_OK))
    with pytest.raises(InputError, match="--metrics_file: .*m.json cannot be written: permission denied"):
        check_target(tmp_path / "m.json", "--metrics_file")
    with pytest.raises(InputError, match="the save file .*a.jsonl cannot be written: permission denied"):
        check_writable(tmp_path / "a.jsonl", overwrite=False)
