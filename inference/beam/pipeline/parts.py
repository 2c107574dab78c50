"""The functions that workers of an engine without graphs run: read inputs into parts, and answer a part with all steps.

A part's answers form one file, which its worker moves into place when the part is done. A worker that takes over a part
finds the dead worker's answers in `.parts`. Knows the graph's transforms; knows nothing about engines.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import cloudpickle
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pvalue import TaggedOutput

from inference.beam.handlers.mindspore import MindSporeModelHandler
from inference.beam.handlers.prompt_handler import PromptHandler
from inference.beam.pipeline.build import (
    KNOWN,
    AskStep,
    ChooseRows,
    Plan,
    TakeAnswers,
    first_of_prompt,
    prompt_key,
    reader,
)
from inference.beam.pipeline.chunks import Chunked
from inference.beam.pipeline.compare import CompareSteps, Figures
from inference.beam.pipeline.counting import counting
from inference.beam.pipeline.failures import NoteFailures
from inference.beam.pipeline.files import ALIVE, ANSWERS, DONE, PIECE, OutputDirectory, Source, names_in
from inference.beam.pipeline.record_files import JSON_LINES, SUFFIX, encoded
from inference.beam.pipeline.row_state import RowState, dead_letter_of, record_of
from inference.beam.pipeline.shuffle import SpillWriter, read_part
from inference.beam.pipeline.step_models import StepModel
from inference.beam.pipeline.steps import Step
from inference.beam.pipeline.worker_files import CheckpointWriter, answer_line, read_answers
from inference.errors import InferenceError

# Rows per batch for a handler without a maximum. Our handlers get the whole part, because they form their own batches.
FOREIGN_BATCH = 64
# The kinds of items in a part: rows of the input, names that an earlier run finished, and its answers.
ROWS, FINISHED, ANSWERED = "rows", "done", "answers"
# Prefix of spill files that are sorted by prompt.
SAID = "said"
COUNTED = ("prompt_tokens", "completion_tokens", "cached_tokens")


@dataclass(frozen=True)
class Reading:
    """An input: a source of rows, or a file of an earlier run with names or answers."""

    number: int
    kind: str
    value: Any


@dataclass
class PartFigures:
    """The figures of a part.

    Args:
        rows: counts of its rows.
        steps: counters of the answers computed now, by step.
        compared: figures of the comparison, if there is one.
        pieces: files with its records that the driver joins, by kind.
    """

    rows: Counter[str] = field(default_factory=Counter)
    steps: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    compared: Figures | None = None
    pieces: dict[str, str] = field(default_factory=dict)


@dataclass
class Spilled:
    """Spill files, and the counts of their items."""

    paths: list[str]
    rows: Counter[str]


class ReadInput:
    """Reads an input into spill files. It is sent to workers.

    To find rows with equal prompts, the files of rows are sorted by prompt, for `DropRepeated`.
    """

    def __init__(self, plan: Plan, parts: int):
        self._plan, self._parts = cloudpickle.dumps(plan), parts

    def __call__(self, reading: Reading) -> Spilled:
        plan = _plan_of(self._plan)
        by_prompt = reading.kind == ROWS and plan.preprocess is not None and plan.preprocess.deduplicates
        spill = SpillWriter(_output_of(plan), f"{SAID if by_prompt else 'input'}-{reading.number:06}", self._parts)
        with counting() as counted:
            for key, item in _items(reading, plan):
                spill.add(prompt_key(item) if by_prompt else key, (reading.kind, item))
        spill.flush()
        return Spilled(spill.paths, counted)


def _items(reading: Reading, plan: Plan) -> Iterator[tuple[str, Any]]:
    if reading.kind == ANSWERED:
        yield from read_answers(reading.value)
    elif reading.kind == FINISHED:
        names = list(names_in(reading.value))
        _output_of(plan).note(DONE, reading.value, len(names))
        yield from ((name, None) for name in names)
    else:
        assert isinstance(reading.value, Source)
        for state in reader(plan).process(reading.value):
            yield state.key, state


class DropRepeated:
    """Keeps the first of the rows with equal prompts in a part, given by its number. It is sent to workers.

    Args:
        spills: the files of rows by `ReadInput`.
    """

    def __init__(self, plan: Plan, spills: Sequence[str], parts: int):
        self._plan, self._spills, self._parts = cloudpickle.dumps(plan), tuple(spills), parts

    def __call__(self, number: int) -> Spilled:
        plan = _plan_of(self._plan)
        said: dict[str, list[RowState]] = defaultdict(list)
        for key, (_, state) in read_part(self._spills, number):
            said[key].append(state)
        spill = SpillWriter(_output_of(plan), f"kept-{number:06}", self._parts)
        with counting() as counted:
            for states in said.values():
                for state in first_of_prompt(states):
                    spill.add(state.key, (ROWS, state))
        spill.flush()
        return Spilled(spill.paths, counted)


class AnswerPart:
    """Answers a part, given by its number, and writes its records. It is sent to workers.

    Args:
        spills: the files of `ReadInput`.
        parts: number of parts.
        run: number of the run, for file names.
        cpus: threads of a model whose config sets none.
    """

    def __init__(self, plan: Plan, spills: Sequence[str], parts: int, run: int, cpus: int):
        self._plan = cloudpickle.dumps(plan)
        self._spills, self._parts, self._run, self._cpus = tuple(spills), parts, run, cpus

    def __call__(self, number: int) -> PartFigures:
        plan = _plan_of(self._plan)
        check_alive(plan)
        part = Part(plan, f"part{number:06}", self._cpus)
        started = time.perf_counter()
        with counting() as part.figures.rows:
            part.answer(read_part(self._spills, number))
        part.write(f"{self._run:02}-{number:05}-of-{self._parts:05}")
        part.figures.rows["worker_milliseconds"] += _milliseconds(started)
        return part.figures


def check_alive(plan: Plan) -> None:
    """Check that a run is still active: a worker may outlive its run, and must not write into the next run's output.

    Raises:
        InferenceError: it has ended.
    """
    if not FileSystems.exists(_output_of(plan).part(f"{plan.run}{ALIVE}")):
        raise InferenceError("the run of this worker has ended")


class Part:
    """The rows of a part as they pass through the steps.

    Args:
        name: prefix of its files in `.parts`.
        cpus: threads of a model whose config sets none.
    """

    def __init__(self, plan: Plan, name: str, cpus: int):
        self._plan, self._name, self._cpus = plan, name, cpus
        self._output = _output_of(plan)
        self._rows: dict[str, RowState] = {}
        self._errors: dict[str, Mapping[str, Any]] = {}
        # Rows that skip all steps: invalid ones, and those with the name of an earlier row.
        self._refused: list[RowState] = []
        self._noting = NoteFailures(plan.run, plan.graph, plan.writer, plan.max_errors)
        self._noting.setup()
        self.figures = PartFigures()

    def answer(self, items: Iterable[tuple[str, tuple[str, Any]]]) -> None:
        """Answer the rows among the items with all steps."""
        try:
            self._choose(items)
            for step in self._plan.graph.steps:
                self._run_step(step)
        finally:
            self._noting.finish_bundle()

    def _choose(self, items: Iterable[tuple[str, tuple[str, Any]]]) -> None:
        groups: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
        for key, (kind, value) in items:
            groups[key][kind].append(value)
        for path in self._output.match(".parts", f"{self._name}-*{ANSWERS}"):
            for key, value in read_answers(path):
                groups[key][ANSWERED].append(value)
        for key, parts in groups.items():
            for state, tag in _untagged(ChooseRows().process((key, {ROWS: parts[ROWS], **parts}))):
                if tag is None:
                    self._rows[key] = state
                else:
                    self._refused += self._noting.process(state)

    def _run_step(self, step: Step) -> None:
        model = self._plan.models[step.name]
        ask = AskStep(step, self._plan.graph, model.prepare)
        asked: list[tuple[RowState, Any]] = []
        for state in self._rows.values():
            if not all(any(name in state.answers for name in group) for group in step.parents):
                continue
            for found, tag in _untagged(ask.process(state)):
                if tag is None:
                    asked.append(found)
                elif tag == KNOWN:
                    pass  # it already has the answer
                else:
                    self._fail(found)
        if asked:
            self._ask(step, model, asked)

    def _ask(self, step: Step, model: StepModel, asked: Sequence[tuple[RowState, Any]]) -> None:
        """Ask a step's model, and put its answers into their rows."""
        started = time.perf_counter()
        handler, loaded = _loaded(self._plan, step.name, self._cpus)
        self.figures.rows["load_milliseconds"] += _milliseconds(started)
        notes = _Notes(self._output, f"{self._name}-{step.name}", step.name, self._plan.checkpoint_seconds)
        by_itself = isinstance(handler, PromptHandler)
        if isinstance(handler, PromptHandler):
            handler.notes = notes
        size = len(asked)
        if not isinstance(handler, (PromptHandler, Chunked)):
            size = int(handler.batch_elements_kwargs().get("max_batch_size") or FOREIGN_BATCH)
        settings = dict(step.settings.settings) or None
        take = TakeAnswers(step.name, model.name, model.result, None)
        for start in range(0, len(asked), size):
            batch = asked[start : start + size]
            started = time.perf_counter()
            results = list(handler.run_inference([given for _, given in batch], loaded, settings))
            self.figures.rows["model_milliseconds"] += _milliseconds(started)
            for (before, _), result in zip(batch, results, strict=True):
                for state, tag in _untagged(take.process((before, result))):
                    if tag is None:
                        self._take(step, state, None if by_itself else notes)
                    else:
                        self._fail(state)
        notes.flush()

    def _take(self, step: Step, state: RowState, notes: _Notes | None) -> None:
        answer = state.answers[step.name]
        self._rows[state.key] = state
        counters = self.figures.steps[step.name]
        counters["answers"] += 1
        for name in COUNTED:
            counters[name] += answer.get(name) or 0
        if notes is not None:
            notes.add({**answer, "custom_id": state.key})

    def _fail(self, state: RowState) -> None:
        """Note a failure. A row with several branches still gets the answers of the others."""
        assert state.error is not None
        self._errors.setdefault(state.key, state.error)
        for _ in self._noting.process(state):
            pass

    def write(self, name: str) -> None:
        """Write the records of the part.

        Args:
            name: the numbers in its file names.

        Raises:
            InferenceError: the run has ended.
        """
        plan, graph = self._plan, self._plan.graph
        answered = [state for key, state in self._rows.items() if key not in self._errors]
        broken = [replace(self._rows[key], error=error) for key, error in self._errors.items()]
        failed = [*self._refused, *broken]
        self.figures.rows.update(rows_answered=len(answered), rows_failed=len(failed))
        if plan.report is not None:
            compare = CompareSteps(graph)
            self.figures.compared = compare.create_accumulator()
            for state in answered:
                compare.add_input(self.figures.compared, state)
        check_alive(plan)
        if failed:
            letters = encoded([dead_letter_of(state, graph) for state in failed], JSON_LINES)
            self._put("failed", f"failed-{name}{SUFFIX[JSON_LINES]}", letters, is_piece=True)
        if answered:
            records = encoded([record_of(state, graph, plan.echo) for state in answered], plan.form)
            self._put("answers", f"answers-{name}{SUFFIX[plan.form]}", records, is_piece=plan.shards > 0)

    def _put(self, kind: str, name: str, data: bytes, is_piece: bool) -> None:
        if is_piece:
            name += PIECE
            self._output.put_part(name, data)
            self.figures.pieces[kind] = name
        else:
            self._output.put(name, data)


class _Notes:
    """Stores the answers of a step for a part as they arrive."""

    def __init__(self, output: OutputDirectory, name: str, step: str, seconds: float):
        self._step, self._writer = step, CheckpointWriter(output, name, seconds)

    def add(self, record: Mapping[str, Any]) -> None:
        self._writer.add(answer_line(record["custom_id"], self._step, record))

    def flush(self) -> None:
        self._writer.flush()


def _milliseconds(started: float) -> int:
    return round(1000 * (time.perf_counter() - started))


def _untagged(outputs: Iterable[Any]) -> Iterator[tuple[Any, str | None]]:
    """Yield the outputs of a DoFn with their tags; None for the main output."""
    for output in outputs:
        yield (output.value, output.tag) if isinstance(output, TaggedOutput) else (output, None)


def _output_of(plan: Plan) -> OutputDirectory:
    assert plan.output is not None
    return plan.output


@lru_cache(maxsize=1)
def _plan_of(pickled: bytes) -> Plan:
    """Return the plan of this worker's calls, and prepare its process for them."""
    FileSystems.set_options(PipelineOptions([]))
    plan: Plan = cloudpickle.loads(pickled)
    _models.clear()
    return plan


def _loaded(plan: Plan, step: str, cpus: int) -> tuple[Any, Any]:
    """Return the handler and the loaded model of a step: each process loads it once."""
    if (plan.run, step) not in _models:
        handler = plan.models[step].handler
        handler.set_environment_vars()
        own = handler.base if isinstance(handler, Chunked) else handler
        if isinstance(own, MindSporeModelHandler):
            own.set_threads(cpus, "pipeline.worker_cpus")
        _models[plan.run, step] = (handler, handler.load_model())
    return _models[plan.run, step]


_models: dict[tuple[str, str], tuple[Any, Any]] = {}
