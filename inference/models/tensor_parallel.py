"""One model on several ranks: the leader steps, the others follow.

The leader runs the engine, including scheduling, sampling and text. A follower has its part of the weights and of the
cache, and executes the leader's commands: run a step, compute states, encode sources, copy blocks, end. Therefore
every decision is made only once.
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

STEP, ENCODE, COPY, HIDDEN, RESULT, END = "step", "encode", "copy", "hidden", "result", "end"
NEEDS, ROOM, BLOCKS = "needs", "room", "blocks"
# Cache positions that a rank must have room for: in total (or None), and for the longest row.
Needs = tuple[int | None, int]


def agree_on_blocks(links: Links, measure: Callable[[], tuple[int, Needs]]) -> int:
    """Runs the leader's side of agreeing on a number of cache blocks that all ranks of a replica have room for.

    Args:
        measure: returns the number of blocks that this rank has room for, and its needs.

    Raises:
        InferenceError: a rank has too little memory.
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
    """Runs a follower's side of `agree_on_blocks`.

    Raises:
        InferenceError: this rank has too little memory.
    """
    assert links.leader is not None
    fields = links.leader.expect(NEEDS).fields
    try:
        blocks, _ = measure((fields["positions"], fields["row"]))
    except InferenceError as error:
        # The leader reports the error and stops all ranks.
        links.unwatch()
        links.leader.send(ROOM, blocks=0, error=str(error))
        raise
    links.leader.send(ROOM, blocks=blocks, error=None)
    return int(links.leader.expect(BLOCKS).fields["blocks"])


class LeadingRunner:
    """The leader's model: a `StepModel` that runs on all ranks of a replica.

    Args:
        runner: this rank's part.
        links: connections to the followers, which run `follow` now or soon.

    Attributes:
        gathering_seconds: time spent waiting for the followers' results after the leader's own.
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
        """Returns the next tokens of the batch's sequences.

        Raises:
            PeerLostError: a follower was lost.
            InferenceError: this rank's part failed; the followers wait for it in the middle of the step, so none of
                them can continue.
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
        """Runs a dummy step, so that compilation happens now."""
        self.step(StepBatch.build([SequenceStep([0], 0, [NULL_BLOCK])], self.block_size))

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies whole blocks of the cache on every rank, one pair (from, to) after another."""
        for channel in self._links.followers:
            channel.send(COPY, [np.array(pairs, np.int32)])
        self.runner.copy_blocks(pairs)

    def encode(self, batch: StepBatch) -> None:
        """Encodes whole sources, and writes what the decoder needs to the cache of every rank."""
        for channel in self._links.followers:
            channel.send(ENCODE, batch.fields())
        self.runner.encode(batch)

    def hidden_states(self, batch: StepBatch) -> np.ndarray:
        """Returns the states after the final norm: every rank computes all of them."""
        for channel in self._links.followers:
            channel.send(HIDDEN, batch.fields())
        return self.runner.hidden_states(batch)

    def close(self) -> None:
        """Ends the followers; no further step can be run."""
        self._links.unwatch()
        for channel in self._links.followers:
            with suppress(PeerLostError):
                channel.send(END)


def follow(runner: ModelRunner, links: Links) -> None:
    """Runs a follower: executes the leader's commands until the leader ends it.

    Raises:
        PeerLostError: the leader was lost.
    """
    assert links.leader is not None
    while True:
        heartbeat.idle()
        message = links.leader.receive()
        if message.kind == STEP:
            links.leader.send(RESULT, runner.step(StepBatch.of_fields(message.arrays)).arrays())
        elif message.kind == HIDDEN:
            runner.hidden_states(StepBatch.of_fields(message.arrays))
        elif message.kind == ENCODE:
            runner.encode(StepBatch.of_fields(message.arrays))
        elif message.kind == COPY:
            runner.copy_blocks([(int(source), int(target)) for source, target in message.arrays[0]])
        elif message.kind == END:
            links.unwatch()
            return
        else:
            raise PeerLostError(f"rank {links.leader.peer} sent an unknown message '{message.kind}'")
