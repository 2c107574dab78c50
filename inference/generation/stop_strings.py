"""Stop strings: found across the borders of tokens, and never shown in part.

Knows text only; what ends a sequence by token id is the engine's business.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Watches text as it grows and holds back what might become a stop string.

    Args:
        stops: the texts that end an answer; empty ones are ignored.
    """

    def __init__(self, stops: Sequence[str] = ()):
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """The text that can be shown now. After a match, `matched` is the stop string and all else is dropped."""
        if self.matched is not None:
            return ""
        if not self._stops:
            return text
        self._held += text
        found = [(at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            # The first to be complete, of several the longest: so it does not matter how the text was cut.
            at, self.matched = min(found, key=lambda match: (match[0] + len(match[1]), match[0]))
            shown, self._held = self._held[:at], ""
            return shown
        keep = self._longest_beginning()
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def finish(self) -> str:
        """What was held back and turned out to be no stop string."""
        held, self._held = self._held, ""
        return held

    def _longest_beginning(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:length]):
                    longest = length
                    break
        return longest


class HidingMatcher:
    """A `StopMatcher` over text of which some, such as special tokens, is matched and never shown.

    Args:
        stops: as for `StopMatcher`.
    """

    def __init__(self, stops: Sequence[str] = ()):
        self._matcher = StopMatcher(stops)
        self._watches = any(stops)
        # What the matcher has not let go yet: texts, and whether they are shown.
        self._open: list[tuple[str, bool]] = []

    @property
    def matched(self) -> str | None:
        return self._matcher.matched

    def push(self, text: str, hidden: str = "") -> str:
        """The text that can be shown now, of `text` and then `hidden`, which is not shown."""
        if not self._watches:
            return text
        self._open += [(text, True), (hidden, False)]
        return self._shown(len(self._matcher.push(text)) + len(self._matcher.push(hidden)))

    def finish(self) -> str:
        """What was held back and turned out to be no stop string."""
        return self._shown(len(self._matcher.finish()))

    def _shown(self, count: int) -> str:
        """Of the next `count` characters those that are shown."""
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
