"""A job on a toy model, through the project's own code and without MindSpore.

`python toy_job.py JSON` runs one, `python toy_job.py --serve` one for each line of JSON on standard input, each in a
process of its own that costs no start-up: it says the process' id, and how it ended.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from toys import END, ByteTokenizer, ToyModel

from inference.config import GenerationConfig
from inference.engine.engine import Engine
from inference.engine.metrics import RunMetrics
from inference.errors import InferenceError
from inference.generation.data_parallel import Replica, Replicas
from inference.generation.samples import SampledGenerator
from inference.generation.text import EncodedPrompt, Encoder, TextGenerator
from inference.inputs import open_rows
from inference.jobs.feed import Feed
from inference.jobs.run import Job, Outcome
from inference.jobs.save_file import SaveFile
from inference.jobs.writer import AnswerWriter
from inference.parallel.channel import Channel, PeerLostError
from inference.terminal.progress import ProgressLine

CONTEXT = 96
BYTES = ByteTokenizer()


def toy_job(
    values: list[str],
    save: str | None,
    *,
    resume: bool = False,
    retry: bool = False,
    overwrite: bool = False,
    ordered: bool = False,
    rows_at_once: int = 4,
    form: str = "json",
    echo: bool = True,
    stdout: Any = None,
    max_errors: int | None = None,
    max_new_tokens: int = 12,
    progress: float | None = None,
    context: int = CONTEXT,
    num_blocks: int = 400,
    metrics: RunMetrics | None = None,
    loaded: list[EncodedPrompt] | None = None,
    replicas: int = 1,
    lost_after: int | None = None,
    broken: str = "",
) -> Outcome:
    """Runs rows.

    Args:
        loaded: gets the row for which the model was loaded.
        replicas: copies of the model, all but the first in threads that stand for processes.
        lost_after: the last copy breaks off after so many steps.
        broken: a character after which the model gives NaN logits.
    """
    rows = open_rows(values)
    identity = {"max_new_tokens": max_new_tokens} if form == "json" else None
    file = SaveFile(Path(save), identity, overwrite, resume or retry, retry) if save else None
    generation = GenerationConfig(max_new_tokens=max_new_tokens, eos_token_id=END)
    feed = Feed(rows, Encoder(BYTES, 258, context, generation).encode, 16, file.done if file else None)
    writer = AnswerWriter(
        form, "toy", rows_at_once, ordered=ordered, stream=True, echo=echo, save_file=file, stdout=stdout
    )

    def copy(metrics: RunMetrics | None) -> TextGenerator:
        poison = ord(broken) if broken else None
        model = ToyModel(vocabulary=258, context_length=context, num_blocks=num_blocks, poison=poison)
        return TextGenerator(Engine(model, max_sequences=rows_at_once, metrics=metrics), BYTES)

    def another(connection: socket.socket, lost_after: int | None) -> None:
        channel, own = Channel(connection, 0), RunMetrics()
        answers = copy(own)
        if lost_after is not None:
            answers.step = break_off(answers.step, connection, lost_after)  # type: ignore[method-assign]
        replica = Replica(channel, answers, generation, own)
        try:
            replica.run()
            replica.say_farewell()
        except PeerLostError:
            assert lost_after is not None

    @contextmanager
    def generator(first: EncodedPrompt) -> Iterator[TextGenerator | Replicas]:
        if loaded is not None:
            loaded.append(first)
        if replicas == 1:
            yield SampledGenerator(copy(metrics))
            return
        pairs = [socket.socketpair() for _ in range(replicas - 1)]
        for i, (_, theirs) in enumerate(pairs):
            lost = lost_after if i == len(pairs) - 1 else None
            threading.Thread(target=another, args=(theirs, lost), daemon=True).start()
        figures = metrics or RunMetrics()
        everyone = Replicas(copy(figures), [Channel(ours, rank) for rank, (ours, _) in enumerate(pairs, 1)])
        try:
            yield SampledGenerator(everyone)
        finally:
            everyone.close(figures)
            for connection in (end for pair in pairs for end in pair):
                connection.close()

    line = ProgressLine(sys.stderr, in_place=False, interval=progress) if progress else None
    job = Job(feed, writer, generator, progress=line, max_errors=max_errors, earlier=file.num_durable if file else 0)
    try:
        outcome = job.run()
        if file:
            file.tidy(ordered)
        return outcome
    finally:
        if file:
            file.close()


def break_off(step: Any, connection: socket.socket, after: int) -> Any:
    """Steps that end with the connection, as if the process were killed."""
    count = itertools.count()

    def counted() -> Any:
        if next(count) >= after:
            connection.shutdown(socket.SHUT_RDWR)
        return step()

    return counted


def serve() -> None:
    for line in sys.stdin:
        child = os.fork()
        if not child:
            run_one(line)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def run_one(line: str) -> None:
    """Ends the process."""
    assert not {"mindspore", "mindformers"} & set(sys.modules)
    try:
        toy_job(**json.loads(line))
    except InferenceError as error:
        os.write(2, f"error: {error}\n".encode())
        os._exit(error.exit_code)
    os._exit(0)


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve()
    else:
        run_one(sys.argv[1])
