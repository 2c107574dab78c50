"""Builds the pipeline: from input files through the steps of a graph to files of answers and failures.

Knows Beam's transforms; `row_state` knows how a step changes a row, `step_models` which model a step runs.
"""

from __future__ import annotations

import sys
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
from apache_beam.ml.inference.base import KeyedModelHandler
from apache_beam.pvalue import TaggedOutput

from inference.beam.handlers.prompt_handler import PromptHandler
from inference.beam.pipeline.compare import CompareSteps, WriteComparison
from inference.beam.pipeline.counting import count
from inference.beam.pipeline.failures import NoteFailures
from inference.beam.pipeline.files import (
    ANSWERS,
    DONE,
    READ,
    Columns,
    OutputDirectory,
    Source,
    names_in,
    read_rows,
)
from inference.beam.pipeline.preprocess import Preprocess, digest_of
from inference.beam.pipeline.record_files import (
    JSON_LINES,
    PARQUET,
    SUFFIX,
    TEXT,
    as_columns,
    json_line,
    schema,
    text_line,
)
from inference.beam.pipeline.row_state import RowState, bad_row, dead_letter_of, given_to, record_of
from inference.beam.pipeline.step_models import StepModel, answer_of
from inference.beam.pipeline.steps import Graph, Step
from inference.beam.pipeline.worker_files import CheckpointWriter, Journal, answer_line, read_answers
from inference.beam.serving.worker_lifetime import follow
from inference.beam.transform import RunInference
from inference.errors import InputError
from inference.generation.record import DUPLICATE

FAILED, KNOWN = "failed", "known"
Rows = Any  # a PCollection of RowState
Writer = tuple[OutputDirectory, float]


@dataclass(frozen=True)
class Plan:
    """Everything needed to build a pipeline.

    Args:
        models: the model of each step.
        output: the output directory; None to print the answers.
        resume: skip rows that are in the output, and steps that have already answered a row.
        echo: include the prompt in records.
        form: format of the files with answers.
        shards: number of these files; 0 leaves it to the runner.
        max_errors: number of rows that may fail before the pipeline ends.
        preprocess: the steps before the models.
        run: distinguishes this run from others in the same process.
    """

    graph: Graph
    models: Mapping[str, StepModel]
    sources: Sequence[Source]
    columns: Columns
    output: OutputDirectory | None = None
    resume: bool = False
    echo: bool = True
    form: str = JSON_LINES
    shards: int = 0
    checkpoint_seconds: float = 5.0
    report: str | None = None
    print_json: bool = False
    max_errors: int | None = None
    preprocess: Preprocess | None = None
    run: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def writer(self) -> Writer | None:
        """The directory for checkpoints of workers, and the seconds between them."""
        return None if self.output is None else (self.output, self.checkpoint_seconds)


def build(pipeline: beam.Pipeline, plan: Plan) -> None:
    """Add all transforms to a pipeline."""
    rows, failed = _begin(pipeline, plan)
    finished, failures = _through(rows, plan)
    failures.append(failed)
    if plan.graph.comes_together:
        whole = (*finished, *failures) | "AllWays" >> beam.Flatten()
        whole = whole | "ByName" >> beam.Map(_by_name).with_output_types(tuple[str, Any])
        apart = (
            whole | "Together" >> beam.GroupByKey() | "Merge" >> beam.ParDo(_Merge()).with_outputs(FAILED, main="ok")
        )
        answered, without = apart["ok"], apart[FAILED]
    else:
        answered = tuple(finished) | "Answered" >> beam.Flatten()
        without = tuple(failures) | "Failed" >> beam.Flatten()
    _write(pipeline, plan, answered, without)


def _begin(pipeline: beam.Pipeline, plan: Plan) -> tuple[Rows, Rows]:
    """Read the rows. Returns those to answer, each name once, and those that cannot be answered."""
    rows = pipeline | "Sources" >> beam.Create(list(plan.sources)) | "SpreadFiles" >> beam.Reshuffle()
    rows = rows | "Read" >> beam.ParDo(reader(plan))
    if plan.preprocess is not None and plan.preprocess.deduplicates:
        rows = (
            rows
            | "Said" >> beam.Map(_by_prompt).with_output_types(tuple[str, Any])
            | "EachPrompt" >> beam.GroupByKey()
            | "FirstOfPrompt" >> beam.FlatMap(lambda item: first_of_prompt(item[1]))
        )
    parts = {"rows": rows | "Name" >> beam.Map(_by_name).with_output_types(tuple[str, Any])}
    if plan.resume and plan.output is not None:
        done = [*plan.output.answers, *plan.output.failures]
        left = plan.output.parts_of(ANSWERS)
        parts["done"] = (
            pipeline
            | "Earlier" >> beam.Create(done)
            | "NamesOfEarlier" >> beam.FlatMap(_named, plan.output).with_output_types(tuple[str, Any])
        )
        parts["answers"] = (
            pipeline
            | "Checkpoints" >> beam.Create(left)
            | "AnswersOfEarlier" >> beam.FlatMap(read_answers).with_output_types(tuple[str, Any])
        )
    apart = (
        parts
        | "EachOnce" >> beam.CoGroupByKey()
        | "Choose" >> beam.ParDo(ChooseRows()).with_outputs(FAILED, main="rows")
    )
    return apart["rows"], apart[FAILED] | "NoteFailures" >> beam.ParDo(_noting(plan))


def _noting(plan: Plan) -> NoteFailures:
    return NoteFailures(plan.run, plan.graph, plan.writer, plan.max_errors)


def _through(rows: Rows, plan: Plan) -> tuple[list[Rows], list[Rows]]:
    """Apply all steps. Returns the rows that leave the last steps, and the rows that failed."""
    out: dict[str, Rows] = {}
    failures: list[Rows] = []
    for step in plan.graph.steps:
        incoming = _incoming(step, rows, out)
        out[step.name], failed = incoming | f"Step-{step.name}" >> _RunStep(step, plan)
        failures.append(failed)
    return [out[name] for name in plan.graph.sinks], failures


def _incoming(step: Step, rows: Rows, out: Mapping[str, Rows]) -> Rows:
    label = f"Into-{step.name}"
    if not step.parents:
        return rows
    if len(step.parents) == 1:
        (group,) = step.parents
        return tuple(out[name] for name in group) | label >> beam.Flatten()
    named = [
        out[name] | f"{label}-{name}" >> beam.Map(_by_name).with_output_types(tuple[str, Any])
        for group in step.parents
        for name in group
    ]
    together = tuple(named) | f"{label}-All" >> beam.Flatten() | f"{label}-Group" >> beam.GroupByKey()
    return together | f"{label}-Join" >> beam.FlatMap(_joined, step.parents)


def _joined(item: tuple[str, Iterable[RowState]], parents: Sequence[Sequence[str]]) -> Iterator[RowState]:
    """Yield a row once all parents have answered it. If a parent failed, the row is already among the failures."""
    states = list(item[1])
    whole = states[0].with_others(states[1:])
    if all(any(name in whole.answers for name in group) for group in parents):
        yield whole


def _by_name(state: RowState) -> tuple[str, RowState]:
    return state.key, state


def _named(path: str, output: OutputDirectory) -> Iterator[tuple[str, None]]:
    """Yield the names of the rows in a file of an earlier run."""
    rows = 0
    for name in names_in(path):
        rows += 1
        yield name, None
    output.note(DONE, path, rows)


def reader(plan: Plan) -> ReadRows:
    """Return the reader for the sources of a plan."""
    return ReadRows(plan.columns, plan.graph.needs_prompt, plan.output, plan.preprocess)


def prompt_key(state: RowState) -> str:
    """Return a key that is equal for rows with equal prompts; a row without a prompt gets a unique key."""
    if state.prompt is None or state.error is not None:
        return f"row {state.file} {state.row}"
    return digest_of(state.prompt)


def _by_prompt(state: RowState) -> tuple[str, RowState]:
    return prompt_key(state), state


def first_of_prompt(states: Iterable[RowState]) -> Iterator[RowState]:
    """Yield the first of the rows with equal prompts. Rows with the same name are not compared: the later one fails."""
    ordered = sorted(states, key=lambda state: (state.file or "", state.row))
    yield ordered[0]
    for state in ordered[1:]:
        if state.key == ordered[0].key:
            yield state
        else:
            count("rows_deduplicated")


class ReadRows(beam.DoFn):
    """Reads and preprocesses the rows of a source, and records their number in the output directory."""

    def __init__(
        self,
        columns: Columns,
        needs_prompt: bool,
        output: OutputDirectory | None,
        preprocess: Preprocess | None = None,
    ):
        self._columns, self._needs_prompt, self._output = columns, needs_prompt, output
        self._preprocess = preprocess

    def setup(self) -> None:
        follow()

    def process(self, source: Source) -> Iterator[RowState]:
        rows = 0
        for state in read_rows(source, self._columns):
            count("rows_read")
            if self._needs_prompt and state.prompt is None and state.error is None:
                state = bad_row(state, InputError(f"{state.file}:{state.line}: no prompt in this row"))
            kept = state if self._preprocess is None else self._preprocess(state)
            if kept is not None:
                rows += 1
                yield kept
        if self._output is not None:
            self._output.note(READ, f"{source.number} {source.value}", rows)


class ChooseRows(beam.DoFn):
    """Keeps the first row of each name, with its answers from earlier runs; drops rows that an earlier run finished."""

    def process(self, item: tuple[str, Mapping[str, Iterable[Any]]]) -> Iterator[Any]:
        key, parts = item
        rows = sorted(parts["rows"], key=lambda state: (state.file or "", state.row))
        if any(True for _ in parts.get("done", ())):
            count("rows_done_before", len(rows))
            return
        if not rows:
            return
        first, *others = rows
        for other in others:
            where = f"{other.file}:{other.line}" if other.file else f"prompt {other.row + 1}"
            message = f"{where}: custom_id '{key}' is that of an earlier row too; give each row its own"
            yield TaggedOutput(FAILED, other.failed(DUPLICATE, message))
        if first.error is not None:
            yield TaggedOutput(FAILED, first)
            return
        for step, answer in parts.get("answers", ()):
            first = first.answered(step, answer)
        yield first


class _RunStep(beam.PTransform):
    """Runs one step, and separates answered rows from failed ones."""

    def __init__(self, step: Step, plan: Plan):
        super().__init__()
        self._step, self._plan = step, plan

    def expand(self, rows: Rows) -> tuple[Rows, Rows]:
        step, model = self._step, self._plan.models[self._step.name]
        asked = rows | "Ask" >> beam.ParDo(AskStep(step, self._plan.graph, model.prepare)).with_outputs(
            FAILED, KNOWN, main="asked"
        )
        settings = dict(step.settings.settings) or None
        writer = self._plan.writer
        if writer is not None and isinstance(model.handler, PromptHandler):
            model.handler.notes, writer = Journal(writer[0], step.name, writer[1]), None
        results = asked["asked"] | "RunInference" >> RunInference(
            KeyedModelHandler(model.handler), inference_args=settings
        )
        answered = results | "Take" >> beam.ParDo(
            TakeAnswers(step.name, model.name, model.result, writer)
        ).with_outputs(FAILED, main="answered")
        out = (asked[KNOWN], answered["answered"]) | "Out" >> beam.Flatten()
        # Record failures where they occur: a transform after a Flatten waits until all transforms before it end.
        unasked = asked[FAILED] | "NoteUnasked" >> beam.ParDo(_noting(self._plan))
        unanswered = answered[FAILED] | "NoteUnanswered" >> beam.ParDo(_noting(self._plan))
        return out, (unasked, unanswered) | "Without" >> beam.Flatten()


class AskStep(beam.DoFn):
    """Pairs each row with its model's input. Rows that the model has already answered bypass it."""

    def __init__(self, step: Step, graph: Graph, prepare: Any):
        self._step, self._graph, self._prepare = step, graph, prepare

    def process(self, state: RowState) -> Iterator[Any]:
        if not self._graph.goes_to(self._step, state.key):
            return
        if self._step.name in state.answers:
            count("answers_of_earlier_runs")
            yield TaggedOutput(KNOWN, state)
            return
        try:
            given = given_to(self._step, state)
        except InputError as error:
            yield TaggedOutput(FAILED, bad_row(state, error, self._step.name))
            return
        if self._prepare is not None:
            try:
                given = self._prepare(given)
            except Exception as error:  # the user's function may raise anything
                problem = InputError(f"row {state.key}: {type(error).__name__}: {error}")
                yield TaggedOutput(FAILED, bad_row(state, problem, self._step.name))
                return
        yield state, given


class TakeAnswers(beam.DoFn):
    """Puts answers into their rows.

    Args:
        writer: directory for answer checkpoints, and the seconds between them; None if the handler checkpoints.
    """

    def __init__(self, step: str, model: str, result: Any, writer: Writer | None):
        self._step, self._model, self._result, self._place = step, model, result, writer
        self._writer: CheckpointWriter | None = None

    def setup(self) -> None:
        follow()
        if self._place is not None:
            self._writer = CheckpointWriter(self._place[0], self._step, self._place[1])

    def process(self, item: tuple[RowState, Any]) -> Iterator[Any]:
        state, result = item
        answer = answer_of(result, self._model, self._result)
        if answer["error"] is not None:
            yield TaggedOutput(FAILED, state.answered(self._step, answer))
            return
        if self._writer is not None:
            self._writer.add(answer_line(state.key, self._step, answer))
        yield state.answered(self._step, answer)

    def finish_bundle(self) -> None:
        if self._writer is not None:
            self._writer.flush()


class _Merge(beam.DoFn):
    """Merges the parts of a row. A duplicate stays a separate row."""

    def process(self, item: tuple[str, Iterable[RowState]]) -> Iterator[Any]:
        states = list(item[1])
        duplicates = [state for state in states if state.error is not None and state.error["type"] == DUPLICATE]
        yield from (TaggedOutput(FAILED, state) for state in duplicates)
        rest = [state for state in states if state not in duplicates]
        if not rest:
            return
        whole = rest[0].with_others(rest[1:])
        yield whole if whole.error is None else TaggedOutput(FAILED, whole)


def _write(pipeline: beam.Pipeline, plan: Plan, answered: Rows, without: Rows) -> None:
    records = answered | "Record" >> beam.Map(_count_record, plan.graph, plan.echo)
    letters = without | "DeadLetter" >> beam.Map(_count_failure, plan.graph)
    if plan.report is not None:
        compared = answered | "Compare" >> beam.CombineGlobally(CompareSteps(plan.graph))
        _ = compared | "Report" >> beam.ParDo(WriteComparison(plan.report, plan.graph))
    if plan.output is None:
        _ = records | "Print" >> beam.ParDo(_Print(plan.print_json))
        _ = letters | "Complain" >> beam.ParDo(_Complain())
        return
    run = plan.output.next_run
    prefix = plan.output.join(f"answers-{run:02}")
    suffix = SUFFIX[plan.form]
    if plan.form == PARQUET:
        _ = (
            records
            | "Columns" >> beam.Map(as_columns)
            | "WriteAnswers"
            >> beam.io.WriteToParquet(prefix, schema(), file_name_suffix=suffix, num_shards=plan.shards)
        )
    else:
        lines = records | "Line" >> beam.Map(text_line if plan.form == TEXT else json_line).with_output_types(str)
        _ = lines | "WriteAnswers" >> beam.io.WriteToText(
            prefix, file_name_suffix=suffix, num_shards=plan.shards, skip_if_empty=True
        )
    _ = (
        letters
        | "FailureLine" >> beam.Map(json_line).with_output_types(str)
        | "WriteFailures"
        >> beam.io.WriteToText(plan.output.join(f"failed-{run:02}"), file_name_suffix=".jsonl", skip_if_empty=True)
    )


def _count_record(state: RowState, graph: Graph, echo: bool) -> dict[str, Any]:
    count("rows_answered")
    return record_of(state, graph, echo)


def _count_failure(state: RowState, graph: Graph) -> dict[str, Any]:
    count("rows_failed")
    return dead_letter_of(state, graph)


_PRINTING = threading.Lock()


class _Print(beam.DoFn):
    """Prints answers to standard output, which reaches the user if the workers share it."""

    def __init__(self, as_json: bool):
        self._as_json = as_json

    def process(self, record: Mapping[str, Any]) -> None:
        with _PRINTING:
            sys.stdout.write(f"{json_line(record) if self._as_json else record['text']}\n")
            sys.stdout.flush()


class _Complain(beam.DoFn):
    """Prints failures to standard error."""

    def process(self, record: Mapping[str, Any]) -> None:
        with _PRINTING:
            sys.stderr.write(f"{record['error']['message']}\n")
