"""`--run_mode predict`: rows in, answers out."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from inference.api.backend import choose_model_class
from inference.config import InferenceConfig
from inference.context import build_context
from inference.engine.metrics import RunMetrics, StartupTimes, process_age
from inference.errors import EXIT_ROWS_FAILED, InferenceError, InputError, is_out_of_memory
from inference.generation.cache_size import longest_row, positions_needed
from inference.generation.data_parallel import OPEN, Replicas
from inference.generation.model import GenerativeModel
from inference.generation.samples import SampledGenerator
from inference.generation.text import EncodedPrompt, TextGenerator
from inference.inputs import RowStream
from inference.jobs.feed import Feed
from inference.jobs.figures import metrics_of, write_metrics, write_plot
from inference.jobs.identity import identity_of
from inference.jobs.run import Job, Outcome
from inference.jobs.save_file import SaveFile
from inference.jobs.writer import AnswerWriter
from inference.modes.call import Call
from inference.modes.check import READ_AHEAD, Checked, check_run, nothing_given, prepare, rows_of, say_what_is_used
from inference.modes.follower import join_others
from inference.parallel.start import Ranks
from inference.terminal.output import count, load_progress, say, summary
from inference.terminal.progress import ProgressLine
from inference.terminal.signals import last_words
from inference.terminal.style import styled

# Seconds to wait for the input to end before allocating a KV cache for more rows than have arrived.
SETTLING = 0.2
# Characters of a prompt that label its answer on a narrow terminal.
SHORTEST_LABEL = 20


def run(call: Call) -> int:
    """Answers every prompt; answers go to standard output and the save file, figures to stderr.

    Returns:
        The exit code: 0, or 3 if rows failed.
    """
    config, again = call.config, call.resume_command
    rows = rows_of(config, call.values)
    ready = prepare(call, rows)
    save_file = _save_file(call, ready, rows)
    say_what_is_used(ready)
    earlier = save_file.num_durable if save_file else 0
    metrics = RunMetrics()
    feed = Feed(rows, ready.encoder.encode, ready.rows_at_once + READ_AHEAD, save_file.done if save_file else None)
    progress = _progress(config)
    job = Job(
        feed,
        _writer(ready, rows, save_file),
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
        raise nothing_given(rows)
    _say_what_came_of_it(ready, outcome, rows, metrics, earlier)
    _write_figures(ready, outcome, metrics, earlier)
    failed = outcome.failed + (save_file.done.failed if save_file else 0)
    if outcome.stopped:
        end = f"stopped: more than {count(config.output.max_errors or 0, 'row')} failed"
        say("; ".join(part for part in (end, _go_on(save_file, again)) if part))
    return EXIT_ROWS_FAILED if failed else 0


def check(call: Call) -> str:
    return check_run(call)


def _save_file(call: Call, ready: Checked, rows: RowStream) -> SaveFile | None:
    output, flag = ready.config.output, "--retry_failed" if call.retry_failed else "--resume"
    if call.resume and call.overwrite:
        raise InputError(f"{flag} continues a save file, --overwrite replaces it", "give one of them")
    if not output.save_file:
        if call.resume:
            raise InputError(f"{flag} continues a save file, and none is named", "give --save_file")
        return None
    identity = None
    if output.form == "json":
        identity = identity_of(ready.source, ready.pairs, ready.tokenizer, ready.encoder.generation, rows)
    return SaveFile(Path(output.save_file), identity, call.overwrite, call.resume, call.retry_failed)


def _writer(ready: Checked, rows: RowStream, save_file: SaveFile | None) -> AnswerWriter:
    output = ready.config.output
    form, on_terminal = output.form, sys.stdout.isatty()
    heading: Callable[[EncodedPrompt], str] | None = None
    if on_terminal and form == "text":
        if output.echo:
            heading = _bold_prompt
        elif output.echo is None and rows.known_count != 1:
            heading = _label
    return AnswerWriter(
        form,
        ready.source.name,
        ready.rows_at_once,
        ordered=output.ordered,
        stream=on_terminal if output.stream is None else output.stream,
        echo=(form == "json") if output.echo is None else output.echo,
        save_file=save_file,
        heading=heading,
        # Records go to one place, so that standard output stays free and a terminal can show the progress.
        stdout=None if save_file and form == "json" else sys.stdout,
    )


def _bold_prompt(source: EncodedPrompt) -> str:
    return styled(source.heading, sys.stdout, bold=True)


def _label(source: EncodedPrompt) -> str:
    """Returns a line that tells several answers on a terminal apart: the beginning of the prompt."""
    width = max(shutil.get_terminal_size().columns - 3, SHORTEST_LABEL)
    text = " ".join(source.text.split())
    shown = text if len(text) <= width else f"{text[: width - 3]}..."
    return styled(f"> {shown}", sys.stdout, bold=True) + "\n"


def _progress(config: InferenceConfig) -> ProgressLine | None:
    """Returns the progress line; None if answers appear on the same terminal."""
    answers_shown = sys.stdout.isatty() and not (config.output.form == "json" and config.output.save_file)
    return None if answers_shown and sys.stderr.isatty() else ProgressLine(sys.stderr, sys.stderr.isatty())


@contextmanager
def _generator(ready: Checked, feed: Feed, first: EncodedPrompt, metrics: RunMetrics) -> Iterator[SampledGenerator]:
    """Loads the model, with a KV cache for the rows that follow `first`."""
    metrics.startup = StartupTimes(python=process_age())
    context = build_context(ready.config)
    metrics.startup.mindspore = context.import_seconds
    rest = feed.whole(SETTLING)
    encoded = [first, *(item for item in rest or () if isinstance(item, EncodedPrompt))]
    # If rows are still to come, their length is unknown: reserve room for the longest that the model accepts.
    positions = None if rest is None else positions_needed(encoded, ready.source)
    row = longest_row(encoded, ready.source)
    progress = load_progress(ready.pairs)
    needs: dict[str, Any] = {"positions": positions, "row": row, "progress": progress, "say": say}
    ranks: Ranks | None = None
    if ready.topology.world_size == 1:
        model = choose_model_class(ready.config)(ready.source, ready.pairs, **needs)
    else:
        kernels, ranks = join_others(ready.config, ready.topology)
        for channel in ranks.links.replicas if ranks else ():
            channel.send(OPEN, positions=positions, row=row)
        model = GenerativeModel(ready.source, ready.pairs, **needs, ranks=ranks, kernels=kernels)
    if ready.config.output.save_file and (rest is None or len(encoded) > 1):
        say(model.describe_cache())
    metrics.startup.weights, metrics.startup.compile = model.times.load, model.times.compile
    with closing(model), model.engine(metrics) as engine:
        own = TextGenerator(engine, ready.tokenizer)
        if ranks is None or not ranks.links.replicas:
            yield SampledGenerator(own)
            return
        everyone = Replicas(own, ranks.links.replicas)
        try:
            yield SampledGenerator(everyone)
        finally:
            ranks.links.unwatch()
            everyone.close(metrics)


def _go_on(save_file: SaveFile | None, again: str) -> str:
    """Returns how to resume a run that ends early; empty if it cannot be resumed."""
    if save_file is None or not save_file.can_resume or not save_file.num_written:
        return ""
    return f"{count(save_file.num_written, 'row')} in {save_file.path}, resume with: {again}"


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
