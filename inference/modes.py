"""What the command line can do, without the command line: predict, evaluate, convert, and check.

Everything that can be wrong with config, model, checkpoint, tokenizer and prompts is found before MindSpore is
imported, so that a mistake costs half a second and not half a minute.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference.config import InferenceConfig
from inference.context import build_context, check_device
from inference.errors import ConfigError, InputError
from inference.generation.model import GenerativeModel, make_encoder, positions_needed, weight_format_of
from inference.generation.perplexity import Score, score
from inference.generation.perplexity import positions_needed as score_positions
from inference.generation.text import EncodedPrompt, TextGenerator
from inference.metrics import RunMetrics, StartupTimes, process_age
from inference.models.convert import check_target
from inference.models.convert import convert as write_converted
from inference.models.source import ModelSource, resolve
from inference.models.weights import Pairs
from inference.output import AnswerWriter, check_writable
from inference.prompts import PromptBatch
from inference.report import count, load_progress, say, summary
from inference.tokenizer import Tokenizer

# Keys of `engine`, the values that do what they say, and what is done for all others.
NOT_THERE_YET: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("backend", ("auto", "native"), "the project's own networks are used"),
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
    check_device(config)
    if config.output.save_file:
        check_writable(Path(config.output.save_file), overwrite)
    source = resolve(config)
    tokenizer = source.tokenizer()
    # A text to evaluate may be longer than the context, and needs no room for an answer.
    predicting = config.run_mode == "predict"
    prompts = make_encoder(source, tokenizer, source.generation).encode_all(batch.prompts) if predicting else []
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


def evaluate(config: InferenceConfig, batch: PromptBatch) -> Score:
    """Perplexity over texts, a document for each prompt; one line on standard output."""
    job = check(config, batch)
    documents = [
        list(prompt.token_ids) if prompt.token_ids else job.tokenizer.encode(prompt.text or "")
        for prompt in batch.prompts
        if prompt.messages is None
    ]
    if not any(len(document) > 1 for document in documents):
        raise InputError("there is no text of two tokens or more to evaluate", "give --predict_data a file of texts")
    _say_what_is_used(job)
    build_context(config)
    positions = score_positions(config.engine.block_size)
    model = GenerativeModel(job.source, job.pairs, positions=positions, progress=load_progress(job.pairs))
    result = score(model.runner, documents)
    figures = {
        "model": job.source.name,
        "weight_dtype": model.runner.weight_format.value,
        "perplexity": result.perplexity,
        "tokens": result.tokens,
        "documents": len(documents),
    }
    if config.output.format == "json":
        print(json.dumps(figures))
    else:
        print(
            f"perplexity {result.perplexity:.4f} over {result.tokens:,} tokens of {count(len(documents), 'document')} "
            f"({figures['model']}, {figures['weight_dtype']})"
        )
    return result


def convert(config: InferenceConfig, force: bool = False) -> Path:
    """Writes the model in `engine.weight_dtype` to `<output_dir>/<model>-<weight_dtype>`; prints where."""
    from inference.kernels.build import KernelBuildError

    check_device(config)
    source = resolve(config)
    pairs = source.pairs()
    if pairs is None or source.packed is not None:
        raise ConfigError("there is nothing to convert: the weights are random or packed already", "give a checkpoint")
    weight_format = weight_format_of(source, pairs)
    target = Path(config.output_dir) / f"{source.name}-{weight_format.value}"
    check_target(target, force)
    try:
        from inference.kernels.library import pack_into, set_threads

        set_threads(config.engine.threads)
    except KernelBuildError as error:
        say(f"{error}: the slower packer is used")
        from inference.kernels.formats import pack_into
    own = dict(source.own_config)
    write_converted(
        pairs,
        source.model,
        own,
        source.directory,
        target,
        weight_format,
        pack_into,
        force=force,
        progress=load_progress(pairs),
    )
    print(target)
    return target


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
