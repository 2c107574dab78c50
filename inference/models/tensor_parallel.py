"""One model on several ranks: the leader steps, the others follow.

The leader has the engine, and so scheduling, sampling and text; a follower knows its part of the weights and of the
cache, and does what it is told: a step, the encoding of sources, a copy of blocks, an end. So whatever is chosen is
chosen once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np

from inference.errors import InferenceError
from inference.models.block_pool import NULL_BLOCK
from inference.models.runner import ModelRunner
from inference.models.step import SequenceStep, StepBatch, StepResult
from inference.parallel import heartbeat
from inference.parallel.channel import PeerLostError
from inference.parallel.connections import Links

STEP, ENCODE, COPY, RESULT, END = "step", "encode", "copy", "result", "end"
NEEDS, ROOM, BLOCKS = "needs", "room", "blocks"
# What a rank must have room for: positions of cache in all or None, and of the longest row.
Needs = tuple[int | None, int]


def agree_on_blocks(links: Links, measure: Callable[[], tuple[int, Needs]]) -> int:
    """The number of blocks of cache that all ranks of a replica have room for: the leader's side.

    Args:
        measure: the number that this rank has room for, and for what.

    Raises:
        InferenceError: a rank has too little room.
    """
    own, (positions, row) = measure()
    for channel in links.followers:
        channel.send(NEEDS, positions=positions, row=row)
    found = [own]
    for channel in links.followers:
        fields = channel.expect(ROOM).fields
        if fields["error"]:
            raise InferenceError(f"rank {channel.peer}: {fields['error']}")
        found.append(fields["blocks"])
    for channel in links.followers:
        channel.send(BLOCKS, blocks=min(found))
    return min(found)


def follow_on_blocks(links: Links, measure: Callable[[Needs], tuple[int, Needs]]) -> int:
    """A follower's side of `agree_on_blocks`.

    Raises:
        InferenceError: this rank has too little room.
    """
    assert links.leader is not None
    fields = links.leader.expect(NEEDS).fields
    try:
        blocks, _ = measure((fields["positions"], fields["row"]))
    except InferenceError as error:
        # The leader says so, and ends all.
        links.unwatch()
        links.leader.send(ROOM, blocks=0, error=str(error))
        raise
    links.leader.send(ROOM, blocks=blocks, error=None)
    return int(links.leader.expect(BLOCKS).fields["blocks"])


class LeadingRunner:
    """A leader's model: what `StepModel` is, over all ranks of a replica.

    Args:
        runner: this rank's part.
        links: to the followers, whose `follow` is running or will be.

    Attributes:
        gathering_seconds: spent on the followers' results, which the leader waits for when its own is there.
    """

    def __init__(self, runner: ModelRunner, links: Links):
        self.runner = runner
        self.block_size, self.num_blocks, self.context_length = (
            runner.block_size,
            runner.num_blocks,
            runner.context_length,
        )
        self.blocks = runner.blocks
        self.gathering_seconds = 0.0
        self._links = links

    def step(self, batch: StepBatch) -> StepResult:
        """The next tokens of the sequences that the batch names.

        Raises:
            PeerLostError: a follower is gone.
            InferenceError: this rank's part cannot be computed; the followers wait for it in the middle of the step, so
                none of them can go on.
        """
        for channel in self._links.followers:
            channel.send(STEP, batch.fields())
        own = self._own_part(batch)
        started = time.perf_counter()
        others = [StepResult(*channel.expect(RESULT).arrays) for channel in self._links.followers]
        self.gathering_seconds += time.perf_counter() - started
        return StepResult.of_parts([own, *others])

    def _own_part(self, batch: StepBatch) -> StepResult:
        try:
            return self.runner.step(batch)
        except InferenceError:
            raise
        except Exception as error:
            raise InferenceError(f"the leading rank cannot compute: {type(error).__name__}: {error}") from error

    def warm_up(self) -> None:
        """A step that matters to nobody."""
        self.step(StepBatch.build([SequenceStep([0], 0, [NULL_BLOCK])], self.block_size))

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies whole blocks of the cache on every rank, one pair (from, to) after the other."""
        for channel in self._links.followers:
            channel.send(COPY, [np.array(pairs, np.int32)])
        self.runner.copy_blocks(pairs)

    def encode(self, batch: StepBatch) -> None:
        """Leaves what a decoder needs of whole sources in the cache of every rank."""
        for channel in self._links.followers:
            channel.send(ENCODE, batch.fields())
        self.runner.encode(batch)

    def close(self) -> None:
        """Lets the followers go; nothing more can be computed."""
        self._links.unwatch()
        for channel in self._links.followers:
            with suppress(PeerLostError):
                channel.send(END)


def follow(runner: ModelRunner, links: Links) -> None:
    """A follower's life: does what its leader says until that is to end.

    Raises:
        PeerLostError: the leader is gone.
    """
    assert links.leader is not None
    while True:
        heartbeat.idle()
        message = links.leader.receive()
        if message.kind == STEP:
            links.leader.send(RESULT, runner.step(StepBatch.of_fields(message.arrays)).arrays())
        elif message.kind == ENCODE:
            runner.encode(StepBatch.of_fields(message.arrays))
        elif message.kind == COPY:
            runner.copy_blocks([(int(source), int(target)) for source, target in message.arrays[0]])
        elif message.kind == END:
            links.unwatch()
            return
        else:
            raise PeerLostError(f"rank {links.leader.peer} asks for '{message.kind}', which nobody knows")
