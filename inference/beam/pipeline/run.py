"""`--run_mode pipeline`: checks everything, runs the pipeline, and shows its figures.

Knows configs and output streams; `build` makes the pipeline.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

import inference
from inference.beam.pipeline.build import Plan, build
from inference.beam.pipeline.cluster import Cluster
from inference.beam.pipeline.cluster_run import check_plan, run_on
from inference.beam.pipeline.counting import NAMESPACE
from inference.beam.pipeline.failures import TooManyFailuresError, forget, too_many
from inference.beam.pipeline.files import ANSWERS, FAILURES, READ, Columns, OutputDirectory, find_sources, rows_in
from inference.beam.pipeline.options import find_runner, pipeline_options
from inference.beam.pipeline.preprocess import Preprocess
from inference.beam.pipeline.progress import Work, progress
from inference.beam.pipeline.step_models import StepModel, model_of
from inference.beam.pipeline.steps import Graph, graph_of
from inference.beam.pipeline.worker_files import flush_all
from inference.beam.serving.retry import run_to_the_end
from inference.config import InferenceConfig
from inference.config.flags import FLAGS
from inference.config.secrets import without_secrets
from inference.context import check_device
from inference.errors import EXIT_ROWS_FAILED, ConfigError, InferenceError, InputError
from inference.jobs.figures import check_target, write_metrics
from inference.terminal.output import say
from inference.terminal.signals import last_words

JOB, FIGURES = "job.json", "metrics.json"


def run_pipeline(
    config: InferenceConfig,
    values: Sequence[str],
    options: Sequence[str],
    *,
    cluster: Cluster | None = None,
    overwrite: bool = False,
    resume: bool = False,
    again: str = "",
) -> int:
    """Answer rows on Beam, or on another engine.

    Args:
        values: file patterns, and prompts.
        options: Beam's options.
        cluster: the other engine.
        overwrite: delete the contents of the output directory.
        resume: resume the run in the output directory.
        again: the command that resumes this run.

    Returns:
        The exit code: 0, or 3 if rows failed.

    Raises:
        InferenceError: the run cannot start, the pipeline failed, or more rows failed than allowed.
    """
    if overwrite and resume:
        raise InputError("--resume continues the output, --overwrite deletes it", "give one of them")
    plan, beam_options = check_pipeline(config, values, options, overwrite or resume, cluster)

    def run(plan: Plan) -> dict[str, Any]:
        if cluster is None:
            return _run_on_beam(plan, beam_options)
        return run_on(cluster, plan, config.pipeline.worker_cpus)

    if plan.output is None:
        return _run_and_tell(config, plan, run, again)
    plan.output.make()
    with plan.output.locked():
        plan = replace(plan, resume=_opened(plan.output, plan, overwrite, resume))
        return _run_and_tell(config, plan, run, again)


def _run_and_tell(config: InferenceConfig, plan: Plan, run: Callable[[Plan], dict[str, Any]], again: str) -> int:
    """Run a pipeline, and write and show its figures. Returns the exit code."""
    output, started = plan.output, time.perf_counter()
    work = Work(len(plan.sources), plan.graph.answers_per_row, exact=not plan.graph.splits)
    with progress(output, work), last_words(lambda: _last_words(output, again)):
        figures = _run(plan, run, again)
    seconds = time.perf_counter() - started
    counted = figures["counters"].get(NAMESPACE, {})
    _check_read(plan, counted.get("rows_read", 0))
    figures = {"seconds": seconds, "rows": counted, **figures}
    if output is not None:
        output.write_json(FIGURES, figures)
        output.remove_parts()
    if config.output.metrics_file:
        write_metrics(Path(config.output.metrics_file), figures)
    _say_figures(figures, seconds)
    failed_before = len(output.failures) if output is not None and plan.resume else 0
    return EXIT_ROWS_FAILED if counted.get("rows_failed") or failed_before else 0


def check_pipeline(
    config: InferenceConfig,
    values: Sequence[str],
    options: Sequence[str],
    may_exist: bool = False,
    cluster: Cluster | None = None,
) -> tuple[Plan, PipelineOptions]:
    """Check everything that can be checked before a pipeline starts.

    Args:
        may_exist: the output directory may hold output.
        cluster: the engine, unless it is Beam.

    Raises:
        InferenceError: the first mistake found.
    """
    check_device(config)
    if cluster is not None and options:
        flag = options[0].partition("=")[0]
        raise ConfigError(
            f"there is no flag {flag}", f"options of Beam are for pipeline.engine beam; here it is {cluster.name}"
        )
    settings, written = config.pipeline, config.output
    unchecked = settings.runner_options or () if cluster is None else ()
    beam_options = pipeline_options(options, unchecked, [flag.name for flag in FLAGS])
    find_runner(beam_options)
    FileSystems.set_options(beam_options)
    graph = graph_of(settings)
    sources = find_sources(values, config.input.format)
    if written.metrics_file:
        check_target(Path(written.metrics_file), "--metrics_file")
    if settings.report_file is not None:
        _check_report(settings.report_file, graph)
    output = None if written.save_file is None else OutputDirectory(written.save_file.rstrip("/"))
    if output is not None:
        _check_output(output, may_exist)
    preprocess = Preprocess(config)
    plan = Plan(
        graph,
        {step.name: model_of(step, config) for step in graph.steps},
        sources,
        Columns(config.input.prompt_column, config.input.id_column, graph.fields | set(settings.fields)),
        output,
        echo=written.echo is not False,
        form=settings.format,
        shards=settings.shards,
        checkpoint_seconds=settings.checkpoint_seconds,
        report=settings.report_file,
        print_json=written.format == "json",
        max_errors=written.max_errors,
        preprocess=preprocess,
    )
    if cluster is not None:
        check_plan(plan, cluster.name)
    return plan, beam_options


def identity_of_job(
    graph: Graph, models: Mapping[str, StepModel], preprocess: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Everything that determines the answers, as dotted keys with JSON values."""
    identity: dict[str, Any] = {"splits": [dict(split) for split in graph.splits], "output": graph.output}
    identity |= {f"preprocess.{key}": value for key, value in (preprocess or {}).items()}
    for step in graph.steps:
        asked = step.settings.model_dump(warnings=False, exclude={"config", "options", "remote", "arguments"})
        about = {**models[step.name].identity, **asked}
        identity |= {f"steps.{step.name}.{key}": value for key, value in about.items()}
    # Anyone may read the file, and a new key or password does not change the answers.
    return dict(without_secrets(json.loads(json.dumps(identity, default=str))))


def _check_report(path: str, graph: Graph) -> None:
    if not path.endswith(".html"):
        raise InputError(f"pipeline.report_file: {path} is not an .html file", "the figures go beside it, as .json")
    if "://" not in path:
        check_target(Path(path), "pipeline.report_file")
    if len(graph.steps) < 2:
        raise InputError("pipeline.report_file compares steps, and there is one", "name the models in pipeline.steps")


def _check_output(output: OutputDirectory, may_exist: bool) -> None:
    if "://" not in output.path and Path(output.path).is_file():
        raise InputError(f"--save_file: {output.path} is a file", "a pipeline writes into a directory")
    if set(output.path) & set("*?["):
        raise InputError(
            f"--save_file: {output.path} has one of * ? [", "file systems read these as patterns; give another name"
        )
    if may_exist or not (output.answers or output.failures or output.match(".parts", "*") or output.match(JOB)):
        return
    raise InputError(
        f"the directory {output.path} holds the output of a run",
        "give another name, or --resume, or --overwrite",
    )


def _opened(output: OutputDirectory, plan: Plan, overwrite: bool, resume: bool) -> bool:
    """Prepare the output directory. Returns whether there is a run to resume."""
    identity = identity_of_job(plan.graph, plan.models, plan.preprocess.given if plan.preprocess else None)
    if overwrite:
        output.clear()
    before = output.read_json(JOB) if resume else None
    if before is not None:
        for key in sorted({*before, *identity}):
            if before.get(key) != identity.get(key):
                was, now = (json.dumps(side.get(key), ensure_ascii=False) for side in (before, identity))
                raise InputError(
                    f"--resume: {output.path} was started with {key} {was}, but it is {now} now",
                    "give the same value, or start again with --overwrite",
                )
    elif resume and (output.answers or output.failures):
        raise InputError(
            f"--resume: {output.join(JOB)} is missing, so the settings of the output are unknown",
            "start again with --overwrite",
        )
    output.make_parts()
    output.tidy()
    output.write_json(JOB, identity)
    return before is not None


def _run_on_beam(plan: Plan, options: PipelineOptions) -> dict[str, Any]:
    # Beam warns about outputs without files, which are normal if no row fails, or if all do.
    logging.getLogger("apache_beam.io.filebasedsink").setLevel(logging.ERROR)
    for name in ("apache_beam.runners.common", "apache_beam.runners.portability.local_job_service"):
        logging.getLogger(name).addFilter(_is_no_stop)
    # Workers that the runner starts must be able to import this package.
    root = str(Path(inference.__file__).parents[1])
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if root not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join(part for part in (root, *paths) if part)
    attempts = itertools.chain([plan], itertools.repeat(replace(plan, resume=plan.output is not None)))
    # The next attempt finds the answers of a worker that died.
    result = run_to_the_end(lambda pipeline: build(pipeline, next(attempts)), options)
    if result.state not in ("DONE", None):
        raise InferenceError(f"the pipeline ended in state {result.state}", "the runner's logs say why")
    return _figures(result)


def _run(plan: Plan, run: Callable[[Plan], dict[str, Any]], again: str) -> dict[str, Any]:
    """Run a pipeline, and turn any error that ends it into an InferenceError."""
    try:
        return run(plan)
    except Exception as error:  # a runner or a worker may raise anything
        stopped = too_many(error)
        if stopped is not None:
            raise TooManyFailuresError(f"stopped: {stopped}", _after_stop(plan.output, again)) from error
        if isinstance(error, InferenceError):
            raise
        hint = _go_on(plan.output, again) or "--traceback shows where"
        raise InferenceError(f"the pipeline failed: {_reason(error)}", hint) from error
    finally:
        forget(plan.run)


def _check_read(plan: Plan, rows: int) -> None:
    """Check that the runner has read everything: Beam's DaskRunner reports success without doing anything.

    Raises:
        InferenceError: part of the input was not read.
        InputError: the input has no rows.
    """
    if plan.output is not None:
        # Count from the workers' files, because not every runner has metrics.
        read = plan.output.parts_of(READ)
        rows = rows or rows_in(read)
        if len(read) < len(plan.sources):
            raise InferenceError(
                f"the runner finished after reading {len(read)} of {len(plan.sources)} inputs",
                "use another runner",
            )
    if not rows:
        raise InputError("the input has no rows", "give files with at least one")


def _is_no_stop(record: logging.LogRecord) -> bool:
    """Log filter: False for a TooManyFailuresError, which is reported in one line at the end."""
    said = record.exc_info[1] if record.exc_info else None
    return not isinstance(said, TooManyFailuresError) and TooManyFailuresError.__name__ not in record.getMessage()


def _go_on(output: OutputDirectory | None, again: str) -> str:
    """How to resume a run that ends early; empty if there is nothing to resume."""
    safe = output.count(ANSWERS) if output is not None else 0
    return f"{safe:,} answers are safe; resume with: {again}" if safe else ""


def _last_words(output: OutputDirectory | None, again: str) -> str:
    """Write this process's pending checkpoints, and return the message for a run that a signal ends."""
    flush_all()
    return _go_on(output, again)


def _after_stop(output: OutputDirectory | None, again: str) -> str | None:
    """The hint for a run that ended with too many failures."""
    if output is None:
        return None
    failures = f"the failures are in {output.part('*' + FAILURES)}"
    return "; ".join(part for part in (failures, _go_on(output, again)) if part)


def _reason(error: BaseException) -> str:
    """The last line of a worker's error, without its traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__


def _figures(result: Any) -> dict[str, Any]:
    """All metrics by kind, namespace and name; distributions are named `step/name`."""
    found = result.metrics().query()
    counters: dict[str, dict[str, Any]] = {}
    distributions: dict[str, dict[str, Any]] = {}
    for metric in found["counters"]:
        own = counters.setdefault(metric.key.metric.namespace, {})
        own[metric.key.metric.name] = own.get(metric.key.metric.name, 0) + metric.result
    for metric in found["distributions"]:
        step = metric.key.step.partition("/")[0].removeprefix("Step-")
        value = metric.result
        distributions.setdefault(metric.key.metric.namespace, {})[f"{step}/{metric.key.metric.name}"] = {
            "count": value.count,
            "sum": value.sum,
            "min": value.min,
            "max": value.max,
            "mean": value.mean,
        }
    return {"counters": counters, "distributions": distributions}


def _say_figures(figures: Mapping[str, Any], seconds: float) -> None:
    """Print a table of the figures to stderr."""
    rows = [(name, f"{value:,}") for name, value in figures["rows"].items()]
    answered = figures["rows"].get("rows_answered", 0)
    rows.append(("seconds", f"{seconds:,.1f}"))
    rows.append(("rows answered a second", f"{answered / max(seconds, 1e-9):,.1f}"))
    for namespace, own in sorted(figures["counters"].items()):
        if namespace != NAMESPACE:
            rows += [(f"{namespace}.{name}", f"{value:,}") for name, value in sorted(own.items())]
    for namespace, own in sorted(figures["distributions"].items()):
        for name, value in sorted(own.items()):
            spread = f"mean {value['mean']:,.0f}, {value['min']:,} to {value['max']:,}, {value['count']:,} times"
            rows.append((f"{namespace}.{name}", spread))
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        say(f"{name.ljust(width)}  {text}")
