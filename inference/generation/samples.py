"""Several answers to a prompt: each sample runs as its own row, and all are returned as one answer.

Knows encoded prompts and the events of their answers; knows nothing about engines or how results are written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from inference.generation.text import Answer, EncodedPrompt, Failure, Load, TextEvent


class Generator(Protocol):
    """Answers rows on one engine (`TextGenerator`) or several (`Replicas`)."""

    @property
    def has_room(self) -> bool: ...

    @property
    def busy(self) -> bool: ...

    @property
    def load(self) -> Load: ...

    def add(self, source: EncodedPrompt) -> None: ...

    def step(self) -> Sequence[TextEvent | Failure]: ...

    def cancel(self) -> None: ...


class SampleGatherer:
    """Gathers the finished samples of each prompt."""

    def __init__(self) -> None:
        self._rows: dict[int, dict[int, Answer]] = {}
        self._failed: set[int] = set()

    def take(self, answer: Answer) -> Answer | None:
        """Takes a finished answer; after the last one, returns the prompt's first sample with `samples` filled in."""
        count = answer.source.generation.num_return_sequences
        if count == 1:
            return answer
        if answer.row in self._failed:
            return None
        found = self._rows.setdefault(answer.row, {})
        found[answer.source.sample] = answer
        if len(found) < count:
            return None
        del self._rows[answer.row]
        found[0].samples = [found[number] for number in range(count)]
        return found[0]

    def fail(self, source: EncodedPrompt) -> bool:
        """Records that a sample, and so its row, has failed; returns whether it is the first of the row to fail."""
        if source.generation.num_return_sequences == 1:
            return True
        is_first = source.row not in self._failed
        self._failed.add(source.row)
        self._rows.pop(source.row, None)
        return is_first


class SampledGenerator:
    """A generator that gives a prompt as many answers as its settings request (`num_return_sequences`).

    The samples share the prompt's blocks of the KV cache through the prefix cache. The text of the first sample is
    shown as it is generated; the row is finished when all samples are.

    Args:
        generator: runs each sample as a row.
    """

    def __init__(self, generator: Generator):
        self._generator = generator
        self._gatherer = SampleGatherer()
        # Unfinished rows with several samples.
        self._open: set[int] = set()

    @property
    def has_room(self) -> bool:
        """Whether more prompts can be used now."""
        return self._generator.has_room

    @property
    def busy(self) -> bool:
        """Whether any answer is not finished."""
        return self._generator.busy

    @property
    def load(self) -> Load:
        """The current load."""
        return self._generator.load

    def add(self, source: EncodedPrompt) -> None:
        """Queues a prompt, once for each sample.

        Raises:
            InputError: the engine cannot take it.
        """
        samples = source.samples
        # The samples have the same size: if the engine accepts the first, it accepts all.
        for sample in samples:
            self._generator.add(sample)
        if len(samples) > 1:
            self._open.add(source.row)

    def step(self) -> list[TextEvent | Failure]:
        """Runs one step; returns the text of each row's first sample, and the rows that finished or failed."""
        return [event for item in self._generator.step() for event in self._joined(item)]

    def cancel(self) -> None:
        """Cancels all unfinished answers."""
        self._generator.cancel()
        self._open.clear()

    def _joined(self, event: TextEvent | Failure) -> list[TextEvent | Failure]:
        source = event.source if isinstance(event, Failure) else event.answer.source
        if source.generation.num_return_sequences == 1:
            return [event]
        if source.row not in self._open:
            # The row has already failed, because another of its samples did.
            return []
        if isinstance(event, Failure):
            self._open.remove(source.row)
            self._gatherer.fail(source)
            return [event]
        return [self._of_row(event)]

    def _of_row(self, event: TextEvent) -> TextEvent:
        """Turns the event of a sample into one of its row: only the first sample shows text."""
        if event.answer.source.sample:
            event = replace(event, text="", first=False)
        whole = self._gatherer.take(event.answer) if event.finished else None
        if whole is None:
            return replace(event, finished=False)
        self._open.remove(whole.row)
        return replace(event, answer=whole)
