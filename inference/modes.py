"""What the command line can do, without the command line: predict, evaluate, pipeline, convert, and check.

Everything that can be wrong with config, model, checkpoint, tokenizer and prompts is found before MindSpore is
imported, so that a mistake costs half a second and not half a minute.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from inference.backend import check_backend, choose_model_class
from inference.config import GenerationConfig, InferenceConfig
from inference.context import build_context, check_device
from inference.errors import (
    EXIT_FAILURE,
    EXIT_ROWS_FAILED,
    ConfigError,
    InferenceError,
    InputError,
    TokenizerError,
    is_out_of_memory,
)
from inference.generation.model import (
    GenerativeModel,
    longest_row,
    make_encoder,
    positions_needed,
    say_what_becomes_of,
    weight_format_of,
)
from inference.generation.perplexity import positions_needed as score_positions
from inference.generation.perplexity import score
from inference.generation.ranks import LOADING, READY, announce, join_ranks, run_follower, say_stage
from inference.generation.replicas import OPEN, Replica, Replicas
from inference.generation.text import EncodedPrompt, Encoder, TextGenerator
from inference.inputs import RowStream, no_prompt, open_rows
from inference.inputs.files import STDIN
from inference.interrupt import end, last_words
from inference.jobs.feed import FailedRow, Feed
from inference.jobs.figures import check_plot, check_target, metrics_of, write_metrics, write_plot
from inference.jobs.identity import identity_of
from inference.jobs.journal import SaveFile, check_writable
from inference.jobs.progress import ProgressLine
from inference.jobs.run import Job, Outcome
from inference.jobs.writer import AnswerWriter
from inference.metrics import RunMetrics, StartupTimes, process_age
from inference.models.convert import check_target as check_converted
from inference.models.convert import convert as write_converted
from inference.models.gguf_architectures import GGUF_KEYS
from inference.models.shards import Pairs
from inference.models.source import ModelSource, is_gguf, resolve
from inference.parallel.rendezvous import NobodyNeededError
from inference.parallel.start import Ranks
from inference.parallel.topology import WORLD_SIZE, check_topology
from inference.prompts import Prompt
from inference.report import count, load_progress, say, summary
from inference.tokenizer import Tokenizer
from inference.tokenizer.gguf_tokenizer import read_gguf_tokenizer

# Rows that are read and encoded ahead, beside those that the engine has.
READ_AHEAD = 32
# Seconds that an input is given to come to its end, before the KV cache is made for more than is there.
SETTLING = 0.2


@dataclass(frozen=True)
class Checked:
    """A run of which everything but the rows of files has been checked, and nothing has been computed."""

    config: InferenceConfig
    source: ModelSource
    pairs: Pairs | None
    tokenizer: Tokenizer
    encoder: Encoder

    @property
    def rows_at_once(self) -> int:
        """The most rows that run, in all copies of the model."""
        return self.config.rows_at_once * check_topology(self.config).data_parallel


def check(config: InferenceConfig, values: Sequence[str], overwrite: bool = False) -> tuple[Checked, int]:
    """Finds every mistake that can be found without computing; also the number of prompts.

    Raises:
        InferenceError: the first one.
    """
    rows = _rows(config, values) if values else None
    ready = _prepare(config, rows, overwrite)
    # Before many ranks start no row is read: a bad one is a record of the run, and standard input is rank 0's.
    if rows is None or WORLD_SIZE in os.environ:
        return ready, 0
    # A document to evaluate is cut into pieces that fit.
    encode = ready.encoder.encode if config.run_mode == "predict" else _not_encoded
    feed, failures, first = Feed(rows, encode, READ_AHEAD), 0, ""
    while (item := feed.take(wait=True)) is not None:
        if isinstance(item, FailedRow):
            failures += 1
            first = first or item.message
    if feed.error is not None:
        raise feed.error
    if failures:
        raise InputError(first, f"{count(failures - 1, 'further row')} cannot be used" if failures > 1 else None)
    if not rows.count:
        raise _nothing(rows)
    return ready, rows.count


def predict(
    config: InferenceConfig,
    values: Sequence[str],
    *,
    overwrite: bool = False,
    resume: bool = False,
    retry_failed: bool = False,
    again: str = "",
) -> int:
    """Answers every prompt; answers go to standard output and the save file, figures to stderr.

    Args:
        values: prompts, and files of prompts.
        overwrite: a save file that exists is lost.
        resume: a save file that exists is gone on with.
        retry_failed: of that, the rows that failed are run again.
        again: the command that goes on with this run, to be shown when it ends early.

    Returns:
        The exit code: 0, or 3 where rows failed.
    """
    rows = _rows(config, values)
    ready = _prepare(config, rows, overwrite or resume)
    save_file = _save_file(ready, rows, overwrite, resume, retry_failed)
    _say_what_is_used(ready)
    earlier = save_file.num_durable if save_file else 0
    metrics = RunMetrics()
    feed = Feed(rows, ready.encoder.encode, ready.rows_at_once + READ_AHEAD, save_file.done if save_file else None)
    progress = _progress(config)
    job = Job(
        feed,
        _writer(ready, save_file),
        lambda first: _generator(ready, feed, first, metrics),
        progress=progress,
        complain=say if config.output.form != "json" else None,
        max_errors=config.output.max_errors,
        earlier=earlier,
    )
    try:
        with last_words(lambda: _last_words(save_file, again)):
            outcome = job.run()
            if save_file:
                save_file.tidy(config.output.ordered)
    except InferenceError as error:
        hint = _go_on(save_file, again) or error.hint
        raise type(error)(error.what, hint) from error
    except Exception as error:
        hint = _go_on(save_file, again)
        if not hint:
            raise
        what = "out of memory" if is_out_of_memory(error) else f"{type(error).__name__}: {error}"
        raise InferenceError(what, hint) from error
    finally:
        if save_file:
            save_file.close()
        metrics.wall_seconds = job.outcome.seconds
    if not rows.count:
        raise _nothing(rows)
    _say_what_came_of_it(ready, outcome, rows, metrics, earlier)
    _write_figures(ready, outcome, metrics, earlier)
    failed = outcome.failed + (save_file.done.failed if save_file else 0)
    if outcome.stopped:
        end = f"stopped: more than {count(config.output.max_errors or 0, 'row')} failed"
        say("; ".join(part for part in (end, _go_on(save_file, again)) if part))
    return EXIT_ROWS_FAILED if failed else 0


def evaluate(config: InferenceConfig, values: Sequence[str]) -> int:
    """Measures the model: against references where rows have them, and by the perplexity of texts otherwise.

    Returns:
        The exit code: 0, 3 where rows failed, or 4 where a threshold was not kept.
    """
    from inference.evaluate import command

    if command.is_asked_for(config, values):
        return command.evaluate_answers(config, values)
    return evaluate_texts(config, values)


def evaluate_texts(config: InferenceConfig, values: Sequence[str]) -> int:
    """Perplexity over texts, a document for each prompt; one line on standard output."""
    rows = _rows(config, values)
    prompts = [row.parse() for row in rows]
    if not prompts:
        raise _nothing(rows)
    job = _prepare(config, rows, replace=True)
    documents = [
        list(prompt.token_ids) if prompt.token_ids else job.tokenizer.encode(prompt.text or "")
        for prompt in prompts
        if prompt.messages is None
    ]
    if not any(len(document) > 1 for document in documents):
        raise InputError("there is no text of two tokens or more to evaluate", "give --predict_data a file of texts")
    _say_what_is_used(job)
    build_context(config)
    kernels, ranks = _join(config)
    positions, progress = score_positions(config.engine.block_size), load_progress(job.pairs)
    model = GenerativeModel(job.source, job.pairs, positions=positions, progress=progress, ranks=ranks, kernels=kernels)
    with closing(model):
        result = score(model.stepper, documents, job.encoder.adapter_of(0, job.encoder.generation))
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
    return 0


def pipeline(config: InferenceConfig, values: Sequence[str], options: Sequence[str], **how: Any) -> int:
    """Answers rows on Apache Beam; `how` is as for `predict`. Returns the exit code."""
    return int(_beam_command().run_pipeline(config, values, options, **how))


def check_other(config: InferenceConfig, values: Sequence[str], options: Sequence[str], overwrite: bool) -> str | None:
    """The same as `check` for a pipeline, or an evaluation on references; what to say of it. None for other runs."""
    if config.run_mode == "pipeline":
        plan, _ = _beam_command().check_pipeline(config, values, options, overwrite)
        models = ", ".join(f"{name}: {model.name}" for name, model in plan.models.items())
        return f"{models}; {count(len(plan.sources), 'input')}; ok"
    if config.run_mode == "evaluate":
        from inference.evaluate import command

        if command.is_asked_for(config, values):
            ready = command.check_evaluation(config, values)
            return f"{ready.model.source.name}: {count(len(ready.examples), 'row')} with references; ok"
    return None


def _beam_command() -> Any:
    """The module that runs pipelines; nothing else imports Beam, which warns of packages that nobody asked for."""
    logging.disable(logging.WARNING)
    try:
        from inference.beam import command
    finally:
        logging.disable(logging.NOTSET)
    return command


def assist(config: InferenceConfig) -> None:
    """What all ranks but the first do: they compute their part of the model, or answer rows that rank 0 sends, and
    write nothing but how far they are.

    Raises:
        PeerLostError: another rank is gone.
    """
    check_device(config)
    topology = check_topology(config)
    announce(topology)
    source = resolve(config)
    pairs = source.pairs(topology.model_rank)
    build_context(config)
    with suppress(NobodyNeededError):
        kernels, ranks = _join(config)
        assert ranks is not None
        if ranks.topology.is_leader:
            _replicate(source, pairs, kernels, ranks)
        else:
            run_follower(source, pairs, kernels, ranks)


def _replicate(source: ModelSource, pairs: Pairs | None, kernels: ModuleType, ranks: Ranks) -> None:
    """Another copy of the model: answers rows until rank 0 says that there are no more."""
    channel = ranks.links.root
    assert channel is not None
    tokenizer, metrics = source.tokenizer(), RunMetrics()
    needs = channel.expect(OPEN).fields
    say_stage(ranks.topology, LOADING)
    model = GenerativeModel(source, pairs, **needs, ranks=ranks, kernels=kernels)
    say_stage(ranks.topology, READY)
    with closing(model), model.engine(metrics) as engine:
        generation = make_encoder(source, tokenizer, source.generation).generation
        replica = Replica(channel, TextGenerator(engine, tokenizer), generation, metrics)
        replica.run()
        ranks.links.unwatch()
        replica.say_farewell()


def _join(config: InferenceConfig) -> tuple[ModuleType, Ranks | None]:
    """The kernels, and the other ranks. Where one of them is lost, this process ends as by Ctrl-C: records whole, and
    how to go on.
    """
    return join_ranks(config, lambda what: end(what, EXIT_FAILURE))


def convert(config: InferenceConfig, force: bool = False) -> Path:
    """Writes the model in `engine.weight_dtype` to `<output_dir>/<model>-<weight_dtype>`; prints where."""
    from inference.kernels.build import KernelBuildError

    check_device(config)
    check_backend(config)
    source = resolve(config)
    parts = [(source.shard(rank), source.pairs(rank) or []) for rank in range(source.ranks)]
    pairs = [pair for _, part in parts for pair in part]
    if not pairs or source.packed is not None:
        raise ConfigError("there is nothing to convert: the weights are random or packed already", "give a checkpoint")
    weight_format = weight_format_of(source, pairs)
    target = Path(config.output_dir) / f"{source.name}-{weight_format.value}"
    check_converted(target, force)
    say_what_becomes_of(pairs, weight_format)
    try:
        from inference.kernels.library import pack_into, set_threads

        set_threads(config.engine.threads)
    except KernelBuildError as error:
        say(f"{error}: the slower packer is used")
        from inference.kernels.formats import pack_into
    own = {key: value for key, value in source.own_config.items() if key not in GGUF_KEYS}
    write_converted(
        parts,
        own,
        _with_tokenizer(source),
        target,
        weight_format,
        pack_into,
        force=force,
        progress=load_progress(pairs),
    )
    print(target)
    return target


def _with_tokenizer(source: ModelSource) -> Path | None:
    """Where a converted model's tokenizer comes from; None, which is said, where a GGUF file's is not read."""
    if source.directory is not None and is_gguf(source.directory):
        try:
            read_gguf_tokenizer(source.directory, {})
        except TokenizerError as error:
            say(f"{error}; no tokenizer is written beside the weights")
            return None
    return source.directory


def _not_encoded(row: int, prompt: Prompt) -> EncodedPrompt:
    return EncodedPrompt(row, prompt, prompt.text or "", [], GenerationConfig())


def _rows(config: InferenceConfig, values: Sequence[str]) -> RowStream:
    return open_rows(values, config.input.format, config.input.prompt_column, config.input.id_column)


def _nothing(rows: RowStream) -> InputError:
    if len(rows.empty_files) == len(rows.inputs) == 1 and rows.inputs[0][0] != STDIN:
        return InputError(f"the prompt file {rows.empty_files[0]} holds no prompt")
    return no_prompt()


def _prepare(config: InferenceConfig, rows: RowStream | None, replace: bool) -> Checked:
    check_device(config)
    check_backend(config)
    if config.run_mode == "convert" and int(os.environ.get(WORLD_SIZE, 1)) > 1:
        raise ConfigError(
            f"{config.origin('run_mode')}: convert is the work of one process, for any number of ranks",
            "run it without the launcher",
        )
    if config.run_mode == "evaluate" and check_topology(config).data_parallel > 1:
        where = config.origin("parallel_config.data_parallel")
        raise ConfigError(f"{where}: evaluate runs on one copy of the model", "give parallel_config.data_parallel 1")
    output = config.output
    if output.save_file:
        check_writable(Path(output.save_file), replace)
    if output.metrics_file:
        check_target(Path(output.metrics_file), "--metrics_file")
    if output.metrics_plot:
        check_plot(Path(output.metrics_plot))
    source = resolve(config)
    if config.run_mode == "evaluate" and source.model.decoder_start is not None:
        raise ConfigError(
            f"{source.name} has an encoder: it gives answers probabilities, and not texts",
            "give rows with references (docs/evaluate.md)",
        )
    tokenizer = source.tokenizer()
    encoder = make_encoder(source, tokenizer, source.generation)
    # A text to evaluate may be longer than the context, and needs no room for an answer.
    for prompt in rows.arguments if rows and config.run_mode == "predict" else ():
        encoder.encode(0, prompt)
    return Checked(config, source, source.pairs(), tokenizer, encoder)


def _save_file(ready: Checked, rows: RowStream, overwrite: bool, resume: bool, retry_failed: bool) -> SaveFile | None:
    output, flag = ready.config.output, "--retry_failed" if retry_failed else "--resume"
    if resume and overwrite:
        raise InputError(f"{flag} goes on with a save file, --overwrite begins anew", "give one of them")
    if not output.save_file:
        if resume:
            raise InputError(f"{flag} goes on with a save file, and there is none", "give --save_file")
        return None
    identity = None
    if output.form == "json":
        identity = identity_of(ready.source, ready.pairs, ready.tokenizer, ready.encoder.generation, rows)
    return SaveFile(Path(output.save_file), identity, overwrite, resume, retry_failed)


def _writer(ready: Checked, save_file: SaveFile | None) -> AnswerWriter:
    output = ready.config.output
    form, on_terminal = output.form, sys.stdout.isatty()
    return AnswerWriter(
        form,
        ready.source.name,
        ready.rows_at_once,
        ordered=output.ordered,
        stream=on_terminal if output.stream is None else output.stream,
        echo=(form == "json") if output.echo is None else output.echo,
        save_file=save_file,
        # A person who has a file made of the records would rather see how it goes.
        stdout=None if save_file and form == "json" and on_terminal else sys.stdout,
    )


def _progress(config: InferenceConfig) -> ProgressLine | None:
    """None where answers appear on the same terminal."""
    answers_shown = sys.stdout.isatty() and not (config.output.form == "json" and config.output.save_file)
    return None if answers_shown and sys.stderr.isatty() else ProgressLine(sys.stderr, sys.stderr.isatty())


@contextmanager
def _generator(
    ready: Checked, feed: Feed, first: EncodedPrompt, metrics: RunMetrics
) -> Iterator[TextGenerator | Replicas]:
    """Loads the model, with a KV cache for the rows that follow `first`."""
    metrics.startup = StartupTimes(python=process_age())
    context = build_context(ready.config)
    metrics.startup.mindspore = context.import_seconds
    rest = feed.whole(SETTLING)
    encoded = [first, *(item for item in rest or () if isinstance(item, EncodedPrompt))]
    # Where rows are still to come, nobody knows how long they are: there is room for the longest that the model takes.
    positions = None if rest is None else positions_needed(encoded, ready.source)
    row = longest_row(encoded, ready.source)
    progress = load_progress(ready.pairs)
    needs: dict[str, Any] = {"positions": positions, "row": row}
    ranks: Ranks | None = None
    if check_topology(ready.config).world_size == 1:
        model = choose_model_class(ready.config)(ready.source, ready.pairs, **needs, progress=progress)
    else:
        kernels, ranks = _join(ready.config)
        for channel in ranks.links.replicas if ranks else ():
            channel.send(OPEN, positions=positions, row=row)
        model = GenerativeModel(ready.source, ready.pairs, **needs, progress=progress, ranks=ranks, kernels=kernels)
    if ready.config.output.save_file and (rest is None or len(encoded) > 1):
        say(model.describe_cache())
    metrics.startup.weights, metrics.startup.compile = model.times.load, model.times.compile
    with closing(model), model.engine(metrics) as engine:
        own = TextGenerator(engine, ready.tokenizer)
        if ranks is None or not ranks.links.replicas:
            yield own
            return
        everyone = Replicas(own, ranks.links.replicas)
        try:
            yield everyone
        finally:
            ranks.links.unwatch()
            everyone.close(metrics)


def _go_on(save_file: SaveFile | None, again: str) -> str:
    """How to go on with a run that ends early; nothing where that cannot be done."""
    if save_file is None or not save_file.can_resume or not save_file.num_written:
        return ""
    return f"{count(save_file.num_written, 'row')} in {save_file.path}, go on with: {again}"


def _last_words(save_file: SaveFile | None, again: str) -> str:
    if save_file is not None:
        with suppress(InferenceError):
            save_file.commit()
    return _go_on(save_file, again)


def _say_what_came_of_it(ready: Checked, outcome: Outcome, rows: RowStream, metrics: RunMetrics, earlier: int) -> None:
    if rows.blank_lines:
        say(f"passed over {count(rows.blank_lines, 'blank line')}")
    for name in rows.empty_files:
        say(f"{name} holds no prompt")
    if outcome.cut:
        say(f"cut {count(outcome.cut, 'prompt')} to the model's context, on the {ready.config.engine.truncate}")
    if earlier:
        say(f"{count(earlier, 'row')} had been done before, {outcome.rows:,} were left")
    if outcome.failed:
        say(f"{outcome.failed:,} of {count(outcome.rows, 'row')} failed, the first: {outcome.first_failure}")
    if metrics.rows_by_replica:
        say(f"rows by replica: {', '.join(map(str, metrics.rows_by_replica))}")
    if metrics.requests:
        say(summary(metrics, outcome.first_token))


def _write_figures(ready: Checked, outcome: Outcome, metrics: RunMetrics, earlier: int) -> None:
    output, name = ready.config.output, ready.source.name
    if output.metrics_file:
        write_metrics(Path(output.metrics_file), metrics_of(outcome, metrics, name, earlier))
    if output.metrics_plot:
        write_plot(Path(output.metrics_plot), outcome, metrics, name)


def _say_what_is_used(job: Checked) -> None:
    """No silent fallback: what was asked for and is not there is named."""
    if job.pairs is None:
        say("weights are random, as asked: the answers mean nothing")
    source = job.source
    is_asked = not job.config.auto_trans_ckpt and job.config.origin("auto_trans_ckpt") != "default"
    if source.ranks > 1 and source.checkpoint and is_asked and not source.is_split:
        say(f"auto_trans_ckpt is False, and {source.checkpoint} is whole: each rank reads its part of it")
