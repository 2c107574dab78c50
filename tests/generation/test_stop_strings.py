"""Stop strings: how a text was cut into pieces makes no difference, and no part of a stop string is shown."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from examples import examples
from inference.generation.stop_strings import StopMatcher

# Few letters, so that stop strings occur, overlap and begin without being completed.
TEXT = st.text("ab", max_size=30) | st.text("abé🙂\n", max_size=20)
STOPS = st.lists(st.text("ab", min_size=1, max_size=5) | st.text("abé🙂\n", min_size=1, max_size=4), max_size=4)


def search(text: str, stops: list[str]) -> tuple[str, str | None]:
    """What is shown and which stop string ended it: the first that is complete; of several, the longest."""
    for end in range(1, len(text) + 1):
        ended = [stop for stop in stops if text[:end].endswith(stop)]
        if ended:
            stop = max(ended, key=len)
            return text[: end - len(stop)], stop
    return text, None


def pieces(text: str, cuts: list[int]) -> list[str]:
    places = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[start:end] for start, end in zip(places, places[1:], strict=False)]


@given(TEXT, STOPS, st.lists(st.integers(0, 30), max_size=12))
@example("abcd", ["bcd", "c"], [3])
@example("abcd", ["ab", "abc"], [2])
@examples(500)
def test_chunked_text_gives_the_result_of_a_single_search(text: str, stops: list[str], cuts: list[int]) -> None:
    expected, stop = search(text, stops)
    matcher, shown = StopMatcher(stops), ""
    for piece in pieces(text, cuts):
        shown += matcher.push(piece)
        assert expected.startswith(shown), "a part of a stop string was shown"
    shown += matcher.finish()
    assert (shown, matcher.matched) == (expected, stop)


@given(TEXT, STOPS)
def test_text_that_cannot_start_a_stop_string_is_shown_at_once(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    shown = matcher.push(text)
    if matcher.matched is None:
        held = text.removeprefix(shown)
        assert shown + held == text
        assert not held or any(stop.startswith(held) for stop in stops)


def test_nothing_follows_a_match() -> None:
    matcher = StopMatcher(["END"])
    assert [matcher.push("one E"), matcher.push("ND two"), matcher.push("three"), matcher.finish()] == [
        "one ",
        "",
        "",
        "",
    ]
    assert matcher.matched == "END"


@pytest.mark.parametrize("stops", [(), ("",), ("", "")])
def test_without_stop_strings_text_is_shown_at_once(stops: tuple[str, ...]) -> None:
    matcher = StopMatcher(stops)
    assert (matcher.push("a"), matcher.push("b"), matcher.finish(), matcher.matched) == ("a", "b", "", None)


def test_an_incomplete_stop_string_is_shown_at_the_end() -> None:
    matcher = StopMatcher(["###"])
    assert (matcher.push("a##"), matcher.push(""), matcher.finish(), matcher.matched) == ("a", "", "##", None)
