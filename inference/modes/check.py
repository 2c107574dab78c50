"""Checks that every run mode makes before it computes anything.

Finds mistakes in the config, model, checkpoint, tokenizer and prompts before MindSpore is imported, so that a mistake
costs half a second and not half a minute.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from inference.api.backend import check_backend
from inference.config import GenerationConfig, InferenceConfig
from inference.config.run_modes import RUN_MODES
from inference.context import check_device
from inference.errors import ConfigError, InputError
from inference.generation.model import make_encoder
from inference.generation.record import Completion
from inference.generation.text import EncodedPrompt, Encoder, sampling_notice
from inference.inputs import RowStream, no_prompt, open_rows
from inference.inputs.files import STDIN
from inference.inputs.prompts import Prompt
from inference.jobs.feed import Feed
from inference.jobs.figures import check_plot, check_target
from inference.jobs.save_file import check_writable
from inference.models.source import ModelSource, resolve
from inference.models.weights.sharding import Pairs
from inference.modes.call import Call
from inference.parallel.topology import WORLD_SIZE, Topology, world_size
from inference.terminal.output import count, say
from inference.tokenizer import Tokenizer

# Rows to read and encode ahead, in addition to those in the engine.
READ_AHEAD = 32


@dataclass(frozen=True)
class Checked:
    """A run that has been checked, except for the rows of files; nothing has been computed yet."""

    config: InferenceConfig
    topology: Topology
    source: ModelSource
    pairs: Pairs | None
    tokenizer: Tokenizer
    encoder: Encoder

    @property
    def rows_at_once(self) -> int:
        """The maximum number of rows that run at the same time, across all copies of the model."""
        return self.config.rows_at_once * self.topology.data_parallel


def check_call(call: Call) -> None:
    """Rejects options that the run mode would ignore.

    Raises:
        ConfigError: a flag or a number of processes that the mode does not support.
    """
    for flag, given, able in (
        ("resume", call.resume and not call.retry_failed, "resumable"),
        ("retry_failed", call.retry_failed, "retries_rows"),
    ):
        if given and not getattr(call.mode, able):
            names = " and ".join(mode.name for mode in RUN_MODES.values() if getattr(mode, able))
            raise ConfigError(f"--{flag} is for run_mode {names}, not {call.mode.name}", "leave it out")
    where = call.config.origin("run_mode")
    if call.mode.processes == "one":
        if world_size() > 1:
            raise ConfigError(f"{where}: {call.mode.name} runs in one process", "run it without the launcher")
    elif call.mode.processes == "model" and call.topology.data_parallel > 1:
        where = call.config.origin("parallel_config.data_parallel")
        raise ConfigError(
            f"{where}: {call.mode.name} runs on one copy of the model", "give parallel_config.data_parallel 1"
        )


def check_run(call: Call, encodes_prompts: bool = True) -> str:
    """Checks everything, including every row of the input; returns a description of what would run."""
    ready, number = check_rows(call, encodes_prompts)
    model = ready.source.model
    return (
        f"{ready.source.name}: {model.architecture}, {model.num_parameters / 1e6:,.1f} M parameters, "
        f"context {model.context_length:,}, weights {ready.source.checkpoint or 'random'}; "
        f"{count(number, 'prompt')}; ok"
    )


def check_rows(call: Call, encodes_prompts: bool = True) -> tuple[Checked, int]:
    """Finds every mistake that can be found without computing; returns the checked run and the number of prompts.

    Args:
        encodes_prompts: False for texts that may be longer than the context.

    Raises:
        InferenceError: the first mistake.
    """
    rows = rows_of(call.config, call.values) if call.values else None
    ready = prepare(call, rows, encodes_prompts)
    # With several ranks, read no rows in advance: the run records bad rows, and standard input belongs to rank 0.
    if rows is None or WORLD_SIZE in os.environ:
        return ready, 0
    encode = ready.encoder.encode if encodes_prompts else _not_encoded
    feed, failures, first = Feed(rows, encode, READ_AHEAD), 0, ""
    while (item := feed.take(wait=True)) is not None:
        if isinstance(item, Completion):
            failures += 1
            first = first or str(item.error)
    if feed.error is not None:
        raise feed.error
    if failures:
        raise InputError(first, f"{count(failures - 1, 'further row')} cannot be used" if failures > 1 else None)
    if not rows.count:
        raise nothing_given(rows)
    return ready, rows.count


def prepare(call: Call, rows: RowStream | None, encodes_prompts: bool = True) -> Checked:
    """Checks everything except the rows of files.

    Args:
        rows: rows of the input; None if there are none yet.
        encodes_prompts: False for texts that may be longer than the context.

    Raises:
        InferenceError: the first mistake.
    """
    config, output = call.config, call.config.output
    check_device(config)
    check_backend(config)
    if output.save_file:
        check_writable(Path(output.save_file), call.may_exist)
    if output.metrics_file:
        check_target(Path(output.metrics_file), "--metrics_file")
    if output.metrics_plot:
        check_plot(Path(output.metrics_plot))
    source = resolve(config)
    tokenizer = source.tokenizer()
    encoder = dataclasses.replace(make_encoder(source, tokenizer), notice=sampling_notice(say))
    for prompt in rows.arguments if rows and encodes_prompts else ():
        encoder.encode(0, prompt)
    return Checked(config, call.topology, source, source.pairs(), tokenizer, encoder)


def rows_of(config: InferenceConfig, values: Sequence[str]) -> RowStream:
    """Opens the rows of prompts and prompt files; they are read lazily. Says so if they are to be typed."""
    given = config.input
    if STDIN in values and sys.stdin is not None and sys.stdin.isatty():
        form = "row of .jsonl" if given.format == "jsonl" else "prompt"
        say(f"reading prompts from the terminal: type one {form} a line, and end with Ctrl-D")
    return open_rows(values, given.format, given.prompt_column, given.id_column, given.max_line_bytes)


def nothing_given(rows: RowStream) -> InputError:
    """Returns the error for an input without any prompt."""
    if len(rows.empty_files) == len(rows.inputs) == 1 and rows.inputs[0][0] != STDIN:
        return InputError(f"the prompt file {rows.empty_files[0]} holds no prompt")
    return no_prompt()


def say_what_is_used(job: Checked) -> None:
    """Reports every fallback: names what was requested but is not available."""
    if job.pairs is None:
        say("weights are random, as asked: the answers mean nothing")
    if flag := job.config.sampling_flag:
        say(f"{flag} without --do_sample: answers are sampled; give --do_sample False for the likeliest tokens")
    source = job.source
    is_asked = not job.config.auto_trans_ckpt and job.config.origin("auto_trans_ckpt") != "default"
    if source.ranks > 1 and source.checkpoint and is_asked and not source.is_split:
        say(f"auto_trans_ckpt is False, and {source.checkpoint} is whole: each rank reads its part of it")


def _not_encoded(row: int, prompt: Prompt) -> EncodedPrompt:
    return EncodedPrompt(row, prompt, prompt.text or "", [], GenerationConfig())
