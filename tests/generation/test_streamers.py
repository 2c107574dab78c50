"""Streamers: each row's text is whole and apart from the others, and every iteration ends."""

from __future__ import annotations

import io
import queue
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import END, ByteTokenizer

from inference.generation.streamers import BaseStreamer, TextIteratorStreamer, TextStreamer

TOKENIZER = ByteTokenizer()
TEXTS = st.text(st.characters(blacklist_categories=("Cs",)), max_size=12)


class Recorder(BaseStreamer):
    """Notes what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[str] = [""]

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.rows[-1] += text
        if stream_end:
            self.rows.append("")


@given(st.lists(st.lists(TEXTS, max_size=4), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_rows_are_whole_and_in_order_however_they_are_interleaved(rows: list[list[str]], chance) -> None:
    """The events of all rows in any order that keeps each row's own; the end of a row is its last event."""
    events = [[*((row, text) for text in texts), (row, None)] for row, texts in enumerate(rows)]
    streamer = Recorder()
    while left := [queue for queue in events if queue]:
        row, text = chance.choice(left).pop(0)
        if text is None:
            streamer.finish(row)
        else:
            streamer.write(row, text)
    assert streamer.rows == ["".join(texts) for texts in rows] + [""]


def test_the_first_row_is_shown_as_it_grows_and_then_the_next() -> None:
    streamer = Recorder()
    streamer.write(1, "later")
    assert streamer.rows == [""]
    streamer.write(0, "no")
    assert streamer.rows == ["no"]
    streamer.write(0, "w")
    streamer.finish(0)
    assert streamer.rows == ["now", "later"]
    streamer.write(1, " on")
    assert streamer.rows == ["now", "later on"]


def test_a_streamer_can_be_used_again_after_a_failed_run() -> None:
    streamer = Recorder()
    streamer.write(0, "a")
    streamer.write(1, "lost")
    streamer.finish(1)
    streamer.close()
    streamer.write(0, "b")
    streamer.finish(0)
    streamer.write(1, "c")
    assert streamer.rows == ["ab", "c"]


def test_text_is_printed_one_row_per_line() -> None:
    file = io.StringIO()
    streamer = TextStreamer(TOKENIZER, file=file)
    streamer.write(1, "zwei")
    streamer.write(0, "eins")
    streamer.finish(1)
    streamer.finish(0)
    assert file.getvalue() == "eins\nzwei\n"


def test_standard_output_is_looked_up_when_it_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    streamer = TextStreamer(TOKENIZER)
    streamer.put([104, 105])
    streamer.end()
    assert capsys.readouterr().out == "hi\n"


@given(TEXTS, TEXTS, st.lists(st.integers(1, 5), max_size=8), st.booleans(), st.booleans())
def test_put_and_end_equal_decoding_at_once(
    prompt: str, answer: str, sizes: list[int], skip_prompt: bool, special: bool
) -> None:
    """As Hugging Face calls a streamer: the prompt, then one token or some at a time, then `end`."""
    file = io.StringIO()
    streamer = TextStreamer(TOKENIZER, skip_prompt=skip_prompt, skip_special_tokens=special, file=file)
    for _ in range(2):  # and it can be used again
        file.truncate(file.seek(0))
        first, ids = TOKENIZER.encode(prompt), [*TOKENIZER.encode(answer), END]
        streamer.put(first)
        at = 0
        for size in sizes:
            streamer.put(ids[at : at + size])
            at += size
        for token_id in ids[at:]:
            streamer.put(token_id)
        streamer.end()
        shown = ids if skip_prompt else first + ids
        assert file.getvalue() == TOKENIZER.decode(shown, skip_special_tokens=special) + "\n"


def test_partial_characters_are_never_shown() -> None:
    file = io.StringIO()
    streamer = TextStreamer(TOKENIZER, file=file)
    for token_id in "né🙂".encode():
        streamer.put(token_id)
        assert "\ufffd" not in file.getvalue()
    streamer.end()
    assert file.getvalue() == "né🙂\n"


def test_an_unfinished_character_shows_at_the_end() -> None:
    file = io.StringIO()
    streamer = TextStreamer(TOKENIZER, file=file)
    streamer.put(list("a🙂".encode())[:3])
    streamer.end()
    assert file.getvalue() == "a\ufffd\n"


def test_the_iterator_gives_all_text_and_ends() -> None:
    streamer = TextIteratorStreamer(TOKENIZER, timeout=60)

    def produce() -> None:
        for token_id in b"one two":
            streamer.put(token_id)
        streamer.end()

    for _ in range(2):
        thread = threading.Thread(target=produce)
        thread.start()
        assert "".join(streamer) == "one two"
        thread.join()


def test_the_iterator_gives_the_rows_in_order() -> None:
    streamer = TextIteratorStreamer(TOKENIZER, timeout=60)
    streamer.write(1, "b")
    streamer.write(0, "a")
    streamer.finish(1)
    streamer.finish(0)
    streamer.close()
    assert list(streamer) == ["a", "b"]


def test_the_iterator_ends_if_the_run_fails() -> None:
    streamer = TextIteratorStreamer(TOKENIZER, timeout=60)
    streamer.write(0, "a")
    streamer.close()
    assert list(streamer) == ["a"]


def test_an_iterator_reports_a_timeout() -> None:
    with pytest.raises(queue.Empty):
        next(TextIteratorStreamer(TOKENIZER, timeout=0.01))
