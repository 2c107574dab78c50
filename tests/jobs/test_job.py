"""A job on a toy model: order, failures, limits, and what is read and kept in memory meanwhile."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_kill import ROOT, records, texts, write_rows
from toy_job import toy_job
from toys import END, ByteTokenizer, ScriptModel

from examples import examples
from inference.config import GenerationConfig
from inference.engine.engine import Engine
from inference.engine.metrics import RunMetrics
from inference.engine.request import FinishReason, Request
from inference.errors import InferenceError, InputError
from inference.generation.record import failed_completion
from inference.generation.text import Answer, EncodedPrompt, Encoder, TextEvent, TextGenerator
from inference.inputs import open_rows
from inference.inputs.prompts import Prompt
from inference.jobs.feed import Feed
from inference.jobs.records import Result, render_json
from inference.jobs.row_sets import NameSet, NumberSet
from inference.jobs.run import Job
from inference.jobs.writer import WAITING, AnswerWriter


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


class TestRows:
    def test_records_are_written_as_rows_finish_or_in_order(self, tmp_path: Path) -> None:
        long_first = [{"prompt": "a", "max_new_tokens": 30 - i} for i in range(24)]
        source, out = jsonl(tmp_path / "in.jsonl", long_first), tmp_path / "out.jsonl"
        toy_job([source], str(out), rows_at_once=8)
        free = [row["row"] for row in records(out)]
        toy_job([source], str(out), rows_at_once=8, ordered=True, overwrite=True)
        assert sorted(free) == [row["row"] for row in records(out)] == list(range(24)) != free

    def test_any_number_at_once_gives_the_same_texts(self, tmp_path: Path) -> None:
        source = write_rows(tmp_path / "in.jsonl", 30)
        found = []
        for i, (at_once, ordered) in enumerate([(1, False), (3, True), (30, False)]):
            out = tmp_path / f"{i}.jsonl"
            toy_job([source], str(out), rows_at_once=at_once, ordered=ordered)
            found.append(texts(out))
        assert found[0] == found[1] == found[2]

    def test_the_fields_of_a_failure(self, tmp_path: Path) -> None:
        rows = [{"prompt": "a", "custom_id": "x"}, {"prompt": "b" * 96}, {"prompt": "c", "custom_id": "x"}]
        source, out = jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
        outcome = toy_job([source, "an argument"], str(out))
        assert (outcome.rows, outcome.failed) == (4, 2)
        good, long, twice, argument = (texts(out)[i] for i in range(4))
        assert good["error"] is argument["error"] is None
        assert long["error"]["line"] == 2 and long["error"]["type"] == "bad_row"
        assert long["error"]["message"].startswith(f"{source}:2: the prompt has 96 tokens")
        assert twice["error"]["type"] == "duplicate_id" and twice["custom_id"] == "x"
        assert outcome.first_failure == long["error"]["message"]
        assert {"custom_id", "row", "prompt", "text", "finish_reason", "model"} <= set(good) & set(long)

    def test_numbers_may_already_be_used_as_names(self, tmp_path: Path) -> None:
        source = jsonl(tmp_path / "in.jsonl", [{"prompt": "a", "custom_id": "1"}, {"prompt": "b"}])
        toy_job([source], str(tmp_path / "out.jsonl"))
        assert texts(tmp_path / "out.jsonl")[1]["error"]["type"] == "duplicate_id"

    def test_a_row_that_the_cache_cannot_hold_fails_alone(self, tmp_path: Path) -> None:
        source = jsonl(tmp_path / "in.jsonl", [{"prompt": "a" * 40, "max_new_tokens": 9}, {"prompt": "b"}])
        assert toy_job([source], str(tmp_path / "out.jsonl"), num_blocks=9).failed == 1
        failed = texts(tmp_path / "out.jsonl")[0]["error"]
        assert "positions of KV cache" in failed["message"] and failed["line"] == 1

    @pytest.mark.parametrize("replicas", [1, 3])
    def test_a_row_on_which_the_model_fails_fails_alone(self, tmp_path: Path, replicas: int) -> None:
        rows = [{"prompt": f"row {i}{'~' * (i % 5 == 2)} and so on", "max_new_tokens": 9} for i in range(40)]
        source, whole, out = jsonl(tmp_path / "in.jsonl", rows), tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
        toy_job([source], str(whole))
        metrics = RunMetrics()
        outcome = toy_job([source], str(out), broken="~", replicas=replicas, ordered=True, metrics=metrics)
        expected, found = texts(whole), texts(out)
        bad = [row for row in range(40) if row % 5 == 2 or "~" in expected[row]["text"][:-1]]
        assert (outcome.rows, outcome.failed, metrics.requests) == (40, len(bad), 40) and len(bad) < 20
        for row in range(40):
            if row not in bad:
                assert found[row] == expected[row]
            else:
                assert found[row]["text"] is None and found[row]["finish_reason"] == "error"
                assert found[row]["error"]["type"] == "model_failed" and found[row]["error"]["line"] == row + 1
                assert found[row]["error"]["message"].startswith(
                    f"{source}:{row + 1}: the model gave logits that are no"
                )
        assert [row["row"] for row in records(out)] == list(range(40))
        assert toy_job([source], str(out), broken="~", max_errors=2, overwrite=True, replicas=replicas).stopped

    def test_without_a_good_row_no_model_is_loaded(self, tmp_path: Path) -> None:
        (tmp_path / "in.jsonl").write_text("{\n" * 100)
        loaded: list[EncodedPrompt] = []
        outcome = toy_job([str(tmp_path / "in.jsonl")], str(tmp_path / "out.jsonl"), loaded=loaded)
        assert outcome.failed == 100 and loaded == [] and len(records(tmp_path / "out.jsonl")) == 100

    @pytest.mark.parametrize(("allowed", "stopped"), [(0, True), (4, True), (5, False), (None, False)])
    def test_max_errors(self, tmp_path: Path, allowed: int | None, stopped: bool) -> None:
        lines = ["{" if i % 20 == 3 else json.dumps({"prompt": f"row {i}"}) for i in range(100)]
        (tmp_path / "in.jsonl").write_text("\n".join(lines))
        out = tmp_path / "out.jsonl"
        outcome = toy_job([str(tmp_path / "in.jsonl")], str(out), max_errors=allowed)
        assert (outcome.stopped, outcome.failed) == (stopped, allowed + 1 if stopped else 5)
        assert (len(records(out)) < 100) == stopped
        # With the bad rows behind it the rest goes on.
        for _ in range(9):
            toy_job([str(tmp_path / "in.jsonl")], str(out), max_errors=allowed, resume=True)
        assert len(texts(out)) == 100

    def test_no_echo(self, tmp_path: Path) -> None:
        (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n{\n')
        toy_job([str(tmp_path / "in.jsonl")], str(tmp_path / "out.jsonl"), echo=False)
        assert not any("prompt" in row for row in records(tmp_path / "out.jsonl"))

    def test_a_truncated_input_loses_no_earlier_row(self, tmp_path: Path) -> None:
        import gzip

        packed = gzip.compress("".join(f"row {i}\n" for i in range(400)).encode())
        (tmp_path / "in.txt.gz").write_bytes(packed[:-8])
        with pytest.raises(InputError, match="damaged"):
            toy_job([str(tmp_path / "in.txt.gz")], str(tmp_path / "out.jsonl"), max_new_tokens=1)
        assert len(texts(tmp_path / "out.jsonl")) == 400

    def test_a_lone_surrogate_in_a_name(self) -> None:
        line = render_json(Result(failed_completion("\ud83d", 0, "bad_row", "f:1: é", line=1)), True)
        assert json.loads(line.encode())["custom_id"] == "\ud83d"


class Slow:
    """Rows that count how many were asked for."""

    def __init__(self, number: int):
        self.number, self.parsed, self.count = number, 0, 0
        self.texts_only, self.known_count = True, None

    def expected(self) -> None:
        return None

    def __iter__(self) -> Any:
        from inference.inputs import Row

        for i in range(self.number):
            self.count += 1
            yield Row(i, "f", i + 1, lambda i=i: self.parse(i))

    def parse(self, number: int) -> Prompt:
        self.parsed += 1
        return Prompt(str(number), f"f:{number + 1}", text="abc")


def encoded(row: int, prompt: Prompt) -> EncodedPrompt:
    return EncodedPrompt(row, prompt, "abc", [97, 98, 99], GenerationConfig(max_new_tokens=2))


class TestFeed:
    def test_read_ahead_is_limited(self) -> None:
        rows = Slow(10_000)
        feed = Feed(rows, encoded, ahead=8)
        taken = [feed.take(wait=True) for _ in range(100)]
        deadline = time.monotonic() + 60
        while feed.num_ready < 8 and time.monotonic() < deadline:
            time.sleep(0.001)
        # A reader that went on would have done so by then. One more is in the thread's hands.
        time.sleep(0.02)
        assert [item.row for item in taken] == list(range(100)) and rows.parsed <= 100 + 8 + 1
        assert not feed.all_read and feed.num_ready == 8

    def test_small_inputs_are_read_completely_in_advance(self) -> None:
        feed = Feed(Slow(5), encoded, ahead=8)
        assert [item.row for item in feed.whole(5)] == [0, 1, 2, 3, 4]
        assert [feed.take(wait=True).row for _ in range(5)] == [0, 1, 2, 3, 4]
        assert feed.take(wait=False) is None and feed.ended
        assert Feed(Slow(50), encoded, ahead=8).whole(5) is None

    def test_it_does_not_wait_for_a_slow_input(self) -> None:
        reader, writer = os.pipe()
        os.write(writer, b"one\n")
        feed = Feed(open_rows([f"/dev/fd/{reader}"], "txt"), encoded, ahead=8)
        assert feed.take(wait=True).prompt.text == "one"
        started = time.monotonic()
        assert feed.whole(0.05) is None and feed.take(wait=False) is None
        # The next row comes when this is over: whoever waits for it waits for ever.
        assert time.monotonic() - started < 30
        os.write(writer, b"two\n")
        assert feed.take(wait=True).prompt.text == "two"
        os.close(writer)
        assert feed.take(wait=True) is None and feed.ended

    def test_finished_rows_are_not_parsed(self) -> None:
        from inference.jobs.feed import DoneRows

        done = DoneRows()
        for number in range(95):
            done.numbers.add(number)
        rows = Slow(100)
        feed = Feed(rows, encoded, 8, done)
        assert [item.row for item in feed.whole(5)] == [95, 96, 97, 98, 99]
        assert (rows.parsed, feed.skipped) == (5, 95)

    def test_the_model_works_while_the_next_rows_are_awaited(self) -> None:
        """A reader that waits stalls no row that runs."""
        reader, writer = os.pipe()
        os.write(writer, b"one\n")
        rows = open_rows([f"/dev/fd/{reader}"], "txt")
        out, done = io.StringIO(), threading.Event()
        tokenizer = ByteTokenizer()
        encoder = Encoder(tokenizer, 258, 512, GenerationConfig(eos_token_id=END))

        class Out(io.StringIO):
            def write(self, text: str) -> int:
                if "\n" in text:
                    done.set()
                return out.write(text)

        show = AnswerWriter("text", "m", 2, ordered=False, stream=True, echo=False, save_file=None, stdout=Out())
        from contextlib import nullcontext

        generator = TextGenerator(Engine(ScriptModel(b"hello", 3), max_sequences=2), tokenizer)
        job = Job(Feed(rows, encoder.encode, 8), show, lambda first: nullcontext(generator))
        running = threading.Thread(target=job.run, daemon=True)
        running.start()
        assert done.wait(60) and out.getvalue() == "hello\n"
        os.close(writer)
        running.join(60)
        assert not running.is_alive()


MEASURE = """
import json, resource, sys
from inference.inputs import open_rows
from inference.jobs.feed import Feed
from inference.jobs.save_file import SaveFile
from inference.jobs.writer import AnswerWriter
from inference.jobs.run import Job
from inference.generation.text import EncodedPrompt
from pathlib import Path
from inference.errors import InputError
def refuse(row, prompt):
    raise InputError(prompt.text)
def used():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
rows = open_rows([sys.argv[1]])
marks = []
class Marked(AnswerWriter):
    def fail(self, failed):
        super().fail(failed)
        if failed.row in (5_000, int(sys.argv[2]) - 1):
            marks.append(used())
writer = Marked("json", "m", 4, ordered=False, stream=False, echo=True, save_file=SaveFile(Path(sys.argv[3]), {}),
                stdout=None)
outcome = Job(Feed(rows, refuse, 64), writer, None).run()
print(outcome.rows, marks[1] - marks[0])
"""


def measured(tmp_path: Path, name: str, row: str, number: int) -> int:
    """Bytes by which the process grows from row 5,000 to the last, all of which go through a job to its file."""
    with (tmp_path / name).open("w") as file:
        file.writelines(row.format(i) for i in range(number))
    words = [sys.executable, "-c", MEASURE, str(tmp_path / name), str(number), str(tmp_path / "out.jsonl")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=True)
    rows, grown = map(int, done.stdout.split())
    assert rows == number
    return grown


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "row"), [("p.txt", "row {}\n"), ("p.jsonl", '{{"custom_id": "r{0}", "prompt": "a"}}\n')]
)
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, name: str, row: str) -> None:
    """The 7,000 rows that are measured take 7 MB and more as objects; names are kept as hashes of 13 to 27 bytes."""
    assert measured(tmp_path, name, row, 12_000) < 2 << 20


class TestSeen:
    @given(st.lists(st.integers(0, 5000)))
    def test_numbers(self, numbers: list[int]) -> None:
        seen, expected = NumberSet(), set()
        for number in numbers:
            assert seen.add(number) == (number not in expected)
            expected.add(number)
        assert len(seen) == len(expected) and all((n in seen) == (n in expected) for n in range(5100))

    @given(st.lists(st.text(max_size=3)))
    def test_names(self, names: list[str]) -> None:
        seen, expected = NameSet(), set()
        for name in names:
            assert seen.add(name) == (name not in expected)
            expected.add(name)

    def test_many_names(self) -> None:
        seen = NameSet()
        assert all(seen.add(f"name {i}") for i in range(20_000)) and len(seen) == 20_000
        assert not any(seen.add(f"name {i}") for i in range(20_000))
        assert len(seen._table) * 8 < 20_000 * 27


def event(row: int, text: str, tokens: int, finished: bool) -> TextEvent:
    request = Request(str(row), [1], GenerationConfig(), 100, output_ids=[1] * tokens)
    answer = Answer(EncodedPrompt(row, Prompt(str(row), "f:1"), f"<{row}>", [1], GenerationConfig()), request)
    answer.text = f"all of {row}"
    if finished:
        request.finish(FinishReason.STOP)
    return TextEvent(answer, text, finished, first=len(answer.request.output_ids) == 1)


class TestTerminal:
    @given(st.data(), st.integers(1, 5), st.booleans())
    @examples(50)
    def test_rows_are_never_interleaved(self, data: st.DataObject, number: int, echo: bool) -> None:
        """In whatever order pieces come, rows are shown in their order, each whole, and what is shown stays shown."""
        out = io.StringIO()
        writer = AnswerWriter("text", "m", number, ordered=False, stream=True, echo=echo, save_file=None, stdout=out)
        left = {row: data.draw(st.integers(1, 4)) for row in range(number)}
        sizes = dict(left)
        for row in range(number):
            writer.expect(row)
        while left:
            row = data.draw(st.sampled_from(sorted(left)))
            left[row] -= 1
            count = sizes[row] - left[row]
            writer.take(event(row, f"{row}.{count} ", count, left[row] == 0))
            if left[row] == 0:
                del left[row]
            # The first row that is not complete shows at once.
            first = min(left, default=None)
            if first is not None:
                shown = sizes[first] - left[first]
                assert out.getvalue().endswith(f"{first}.{shown} ") or not shown
        head = "<{0}>" if echo else ""
        whole = [head.format(row) + "".join(f"{row}.{i + 1} " for i in range(sizes[row])) for row in range(number)]
        assert out.getvalue() == "".join(f"{text}\n" for text in whole)

    def test_a_row_without_an_answer_shows_nothing(self) -> None:
        out = io.StringIO()
        writer = AnswerWriter("text", "m", 3, ordered=False, stream=True, echo=False, save_file=None, stdout=out)
        for row in range(3):
            writer.expect(row)
        writer.fail(failed_completion("1", 1, "bad_row", "f:2: bad", line=2))
        writer.take(event(2, "two", 1, True))
        assert out.getvalue() == ""
        writer.take(event(0, "none", 1, True))
        assert out.getvalue() == "none\ntwo\n"

    def test_a_row_that_fails_in_its_middle_ends_its_line(self) -> None:
        out = io.StringIO()
        writer = AnswerWriter("text", "m", 3, ordered=False, stream=True, echo=False, save_file=None, stdout=out)
        for row in range(3):
            writer.expect(row)
            writer.take(event(row, f"{row}.1 ", 1, False))
        writer.fail(failed_completion("1", 1, "model_failed", "f:2: not numbers", line=2))
        writer.fail(failed_completion("0", 0, "model_failed", "f:1: not numbers", line=1))
        assert out.getvalue() == "0.1 \n2.1 "
        writer.take(event(2, "2.2", 2, True))
        assert out.getvalue() == "0.1 \n2.1 2.2\n"

    def test_without_streaming_a_row_is_shown_when_it_is_complete(self) -> None:
        out = io.StringIO()
        writer = AnswerWriter("text", "m", 1, ordered=False, stream=False, echo=False, save_file=None, stdout=out)
        writer.expect(0)
        writer.take(event(0, "a", 1, False))
        assert out.getvalue() == ""
        writer.take(event(0, "b", 2, True))
        assert out.getvalue() == "all of 0\n"

    def test_a_limited_number_of_rows_wait_for_an_earlier_one(self) -> None:
        writer = AnswerWriter("json", "m", 2, ordered=True, stream=False, echo=True, save_file=None, stdout=None)
        for row in range(2 * WAITING):
            assert writer.has_room
            writer.expect(row)
        assert not writer.has_room
        writer.fail(failed_completion("0", 0, "bad_row", "bad", line=1))
        assert writer.has_room


class TestEndings:
    def run(self, job: dict[str, Any], **options: Any) -> subprocess.CompletedProcess[bytes]:
        words = [sys.executable, str(Path(__file__).with_name("toy_job.py")), json.dumps(job)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(words, capture_output=True, env=environment, **options)

    @pytest.mark.parametrize("limit", [700, 1500, 4096])
    def test_a_full_disk(self, tmp_path: Path, limit: int) -> None:
        """A limit on the size of files stands for it: a write stops in the middle, and the next fails."""
        import resource
        import signal

        source, out = write_rows(tmp_path / "in.jsonl", 40), tmp_path / "out.jsonl"

        def limited() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        job = {"values": [source], "save": str(out)}
        done = self.run(job, preexec_fn=limited)
        assert (done.returncode, done.stderr) == (1, f"error: {out} cannot be written: File too large\n".encode())
        written = texts(out)
        assert 0 < len(written) < 40 and out.stat().st_size <= limit
        toy_job([source], str(out), resume=True)
        assert len(texts(out)) == 40

    def test_a_full_device(self, tmp_path: Path) -> None:
        with pytest.raises(InferenceError, match="/dev/full cannot be written: No space left on device"):
            toy_job(["a"], "/dev/full")

    def test_a_pipe_whose_reader_has_closed(self, tmp_path: Path) -> None:
        source, out = write_rows(tmp_path / "in.jsonl", 40), tmp_path / "out.jsonl"
        reader, pipe = os.pipe()
        os.close(reader)
        with os.fdopen(pipe, "w") as stdout, pytest.raises(InferenceError, match="reader of standard output has gone"):
            toy_job([source], str(out), stdout=stdout)
        # What was not printed is in the file.
        assert len(texts(out)) > 0


def test_progress_counts_what_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    source, out = write_rows(tmp_path / "in.jsonl", 200), tmp_path / "out.jsonl"
    synced = 0
    real = os.fsync

    def fsync(fd: int) -> None:
        nonlocal synced
        real(fd)
        if os.fstat(fd).st_ino == out.stat().st_ino:
            synced = len(out.read_bytes().splitlines())

    counted: list[tuple[int, int]] = []
    from inference.terminal.progress import ProgressLine

    show = ProgressLine.show

    def checked(self: ProgressLine, text: str, seconds: float) -> None:
        counted.append((int(text.split()[0]), synced))
        show(self, text, seconds)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(ProgressLine, "show", checked)
    metrics = RunMetrics()
    outcome = toy_job([source], str(out), progress=0.01, metrics=metrics)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(counted) > 2 and all(shown <= on_disk for shown, on_disk in counted)
    assert counted[-1][0] > 0
    assert all(" rows, " in line and "tok/s in" in line and "running" in line and "KV cache" in line for line in lines)
    assert any("ETA 0:00:" in line for line in lines) and " of 200 rows" in lines[-1]
    answered = [row for row in records(out) if row["error"] is None]
    assert (outcome.rows, outcome.failed, metrics.requests) == (200, 200 - len(answered), len(answered))
    assert metrics.completion_tokens == sum(row["completion_tokens"] for row in answered)
