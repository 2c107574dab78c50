"""Stop strings: found across token boundaries, and never shown in part.

Knows text only; ending a sequence by token id is the engine's task.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Watches text as it grows and holds back a possible start of a stop string.

    Args:
        stops: the texts that end an answer; empty ones are ignored.
    """

    def __init__(self, stops: Sequence[str] = ()):
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """Returns the text that can be shown now. A match sets `matched` and drops all later text."""
        if self.matched is not None:
            return ""
        if not self._stops:
            return text
        self._held += text
        found = [(at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            # Take the stop string that completes first, and the longest of several, so that the result does not depend
            # on chunking.
            at, self.matched = min(found, key=lambda match: (match[0] + len(match[1]), match[0]))
            shown, self._held = self._held[:at], ""
            return shown
        keep = self._longest_beginning()
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def finish(self) -> str:
        """Returns the text that was held back and is not part of a stop string."""
        held, self._held = self._held, ""
        return held

    def _longest_beginning(self) -> int:
        """Returns the length of the longest suffix of the held text that is a prefix of a stop string."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:length]):
                    longest = length
                    break
        return longest


class HidingMatcher:
    """A `StopMatcher` for text with parts, such as special tokens, that are matched but never shown.

    Args:
        stops: as for `StopMatcher`.
    """

    def __init__(self, stops: Sequence[str] = ()):
        self._matcher = StopMatcher(stops)
        self._watches = any(stops)
        # Texts that the matcher still holds back, and whether they are shown.
        self._open: list[tuple[str, bool]] = []

    @property
    def matched(self) -> str | None:
        return self._matcher.matched

    def push(self, text: str, hidden: str = "") -> str:
        """Takes `text`, then `hidden`, which is never shown; returns the text that can be shown now."""
        if not self._watches:
            return text
        self._open += [(text, True), (hidden, False)]
        return self._shown(len(self._matcher.push(text)) + len(self._matcher.push(hidden)))

    def finish(self) -> str:
        """Returns the text that was held back and is not part of a stop string."""
        return self._shown(len(self._matcher.finish()))

    def _shown(self, count: int) -> str:
        """Returns the visible ones among the next `count` characters."""
        shown = []
        while count > 0:
            text, is_shown = self._open.pop(0)
            if len(text) > count:
                self._open.insert(0, (text[count:], is_shown))
                text = text[:count]
            count -= len(text)
            if is_shown:
                shown.append(text)
        return "".join(shown)
