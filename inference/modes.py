"""What the command line can do, without the command line: predict, and check.

Everything that can be wrong with config, model, checkpoint, tokenizer and prompts is found before MindSpore is
imported, so that a mistake costs half a second and not half a minute.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference.config import InferenceConfig
from inference.context import build_context, check_device
from inference.errors import ConfigError
from inference.generation.model import GenerativeModel, make_encoder, positions_needed
from inference.generation.text import EncodedPrompt, TextGenerator
from inference.metrics import RunMetrics, StartupTimes, process_age
from inference.models.source import ModelSource, resolve
from inference.models.weights import Pairs
from inference.output import AnswerWriter, check_writable
from inference.prompts import PromptBatch
from inference.report import count, load_progress, say, summary
from inference.tokenizer import Tokenizer

# Keys of `engine`, the values that do what they say, and what is done for all others.
NOT_THERE_YET: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("backend", ("auto", "native"), "the project's own networks are used"),
    ("prefix_cache", (False,), "every prompt is computed"),
)


@dataclass(frozen=True)
class Job:
    """A run of which everything has been checked and nothing has been computed."""

    config: InferenceConfig
    source: ModelSource
    pairs: Pairs | None
    tokenizer: Tokenizer
    prompts: list[EncodedPrompt]


def check(config: InferenceConfig, batch: PromptBatch, overwrite: bool = False) -> Job:
    """Finds every mistake that can be found without computing.

    Raises:
        InferenceError: the first one.
    """
    if config.run_mode != "predict":
        raise ConfigError(
            f"{config.origin('run_mode')}: run_mode {config.run_mode} is not there yet", "give --run_mode predict"
        )
    check_device(config)
    if config.output.save_file:
        check_writable(Path(config.output.save_file), overwrite)
    source = resolve(config)
    tokenizer = source.tokenizer()
    prompts = make_encoder(source, tokenizer, source.generation).encode_all(batch.prompts)
    return Job(config, source, source.pairs(), tokenizer, prompts)


def predict(config: InferenceConfig, batch: PromptBatch, overwrite: bool = False) -> RunMetrics:
    """Answers every prompt; answers go to standard output and the save file, figures to stderr."""
    job = check(config, batch, overwrite)
    if batch.blank_lines:
        say(f"passed over {count(batch.blank_lines, 'blank line')}")
    cut = [prompt for prompt in job.prompts if prompt.truncated]
    if cut:
        say(f"cut {count(len(cut), 'prompt')} to the model's context, on the {config.engine.truncate}")
    _say_what_is_used(job)
    metrics = RunMetrics(startup=StartupTimes(python=process_age()))
    context = build_context(config)
    metrics.startup.mindspore = context.import_seconds
    model = GenerativeModel(
        job.source,
        job.pairs,
        positions=positions_needed(job.prompts, job.source),
        progress=load_progress(job.pairs),
    )
    metrics.startup.weights, metrics.startup.compile = model.runner.times.load, model.runner.times.compile
    first_token = _run(job, model, metrics, overwrite)
    say(summary(metrics, first_token))
    return metrics


def _run(job: Job, model: GenerativeModel, metrics: RunMetrics, overwrite: bool) -> float | None:
    """Runs the prompts; the age of the process when the first token was out."""
    output = job.config.output
    writer = AnswerWriter(
        output.format,
        job.source.name,
        stream=sys.stdout.isatty() if output.stream is None else output.stream,
        echo=output.echo,
        save_file=Path(output.save_file) if output.save_file else None,
        overwrite=overwrite,
    )
    started, first_token = time.perf_counter(), None
    try:
        with model.engine(metrics) as engine:
            for event in TextGenerator(engine, job.tokenizer).stream(job.prompts):
                first_token = first_token or process_age()
                writer.take(event)
    finally:
        writer.close()
        metrics.wall_seconds = time.perf_counter() - started
    return first_token


def _say_what_is_used(job: Job) -> None:
    """No silent fallback: what was asked for and is not there is named."""
    if job.pairs is None:
        say("weights are random, as asked: the answers mean nothing")
    for key, there, instead in NOT_THERE_YET:
        asked = getattr(job.config.engine, key)
        if asked not in there:
            say(f"engine.{key} {asked} is not there yet: {instead}")
