"""A row in a pipeline: its data, and the answers of the steps so far.

Knows rows and records; knows nothing about Beam.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from inference.beam.pipeline.steps import Graph, Step
from inference.errors import InputError
from inference.generation.record import BAD_ROW, FIELD_NAMES, failed_completion
from inference.inputs.prompts import Prompt

# Keys of an answer that are recorded per step.
STEP_KEYS = (
    "text",
    "value",
    "finish_reason",
    "prompt_tokens",
    "completion_tokens",
    "total_seconds",
    "model",
    "attempts",
)
# Keys of a record that come from the answer; the pipeline sets the others.
RECORD_KEYS = tuple(name for name in FIELD_NAMES if name not in ("custom_id", "row", "prompt"))


@dataclass(frozen=True)
class RowState:
    """One row.

    Args:
        key: its name, which joins use.
        file: its file; None for a prompt from the command line.
        row: its index in the file, from 0.
        line: its line in the file, from 1.
        prompt: its prompt; None if it has none, since not every model needs one.
        data: the row as read, for steps that use its fields; its text if it could not be parsed.
        answers: record of each step.
        error: why it failed: `type`, `message`, `line`, and the `step` if it failed in one.
    """

    key: str
    file: str | None
    row: int
    line: int | None
    prompt: Prompt | None = None
    data: Any = None
    answers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    error: Mapping[str, Any] | None = None

    def answered(self, step: str, record: Mapping[str, Any]) -> RowState:
        """Add the record of a step, which may be a failure."""
        if record["error"] is None:
            return replace(self, answers={**self.answers, step: record})
        error = record["error"]
        return self.failed(str(error["type"]), str(error["message"]), step)

    def failed(self, kind: str, message: str, step: str | None = None) -> RowState:
        where = {"step": step} if step is not None else {}
        return replace(self, error={"type": kind, "message": message, "line": self.line, **where})

    def with_others(self, others: list[RowState]) -> RowState:
        """Merge the parts of this row from several branches."""
        states = [self, *others]
        error = next((state.error for state in states if state.error is not None), None)
        return replace(self, answers={k: v for state in states for k, v in state.answers.items()}, error=error)


def given_to(step: Step, state: RowState) -> Any:
    """The input of a step's model: a prompt, or for a foreign handler the field, text or values that its settings name.

    Raises:
        InputError: the row lacks what the step needs.
    """
    settings = step.settings
    text = step.template.render(variables(step, state)) if step.template is not None else None
    if not step.is_foreign:
        if text is not None:
            return Prompt(state.key, _where(state), text=text)
        if state.prompt is None:
            raise InputError(f"{_where(state)}: no prompt in this row")
        return state.prompt
    if text is not None:
        return text
    if settings.field is not None:
        if not isinstance(state.data, Mapping) or settings.field not in state.data:
            raise InputError(f"{_where(state)}: no '{settings.field}' in this row")
        return state.data[settings.field]
    if step.parents:
        return variables(step, state)
    return state.data if state.prompt is None else prompt_text(state)


def variables(step: Step, state: RowState) -> dict[str, Any]:
    """The variables of a template."""
    answers = {name: record["text"] for name, record in state.answers.items()}
    answer = next((answers[name] for name in step.answer_of if name in answers), None)
    row = state.data if isinstance(state.data, Mapping) else {}
    return {**answers, "prompt": prompt_text(state), "row": row, "answer": answer}


def prompt_text(state: RowState) -> str | None:
    """The prompt as text; for a chat, its last message."""
    prompt = state.prompt
    if prompt is None or prompt.messages is None:
        return None if prompt is None else prompt.text
    return str(prompt.messages[-1].get("content") or "")


def record_of(state: RowState, graph: Graph, echo: bool) -> dict[str, Any]:
    """The output record of an answered row: the batch job's record and the file; with several steps, each answer."""
    order = [graph.output] if graph.output else []
    name = next(name for name in (*order, *graph.sinks, *reversed(list(state.answers))) if name in state.answers)
    answer = state.answers[name]
    shown = answer.get("prompt")
    record = {
        "custom_id": state.key,
        "row": state.row,
        "file": state.file,
        **({"prompt": prompt_text(state) if shown is None or len(graph.steps) > 1 else shown} if echo else {}),
        **{key: answer[key] for key in RECORD_KEYS if key in answer},
    }
    if len(graph.steps) > 1:
        record["step"] = name
        record["steps"] = _steps(state, graph)
    return record


def dead_letter_of(state: RowState, graph: Graph) -> dict[str, Any]:
    """The output record of a failed row: the same keys, the reason, and the row as read, so that it can be rerun."""
    assert state.error is not None
    kind, message = str(state.error["type"]), str(state.error["message"])
    models = {step: record["model"] for step, record in state.answers.items()}
    record = failed_completion(state.key, state.row, kind, message, line=state.line).as_dict(echo=False)
    record = {"custom_id": record.pop("custom_id"), "row": record.pop("row"), "file": state.file, **record}
    record |= {"model": models.get(str(state.error.get("step"))), "error": dict(state.error)}
    if state.answers:
        record["steps"] = _steps(state, graph)
    return {**record, "input": state.data if state.data is not None else prompt_text(state)}


def bad_row(state: RowState, error: InputError, step: str | None = None) -> RowState:
    return state.failed(BAD_ROW, str(error), step)


def _steps(state: RowState, graph: Graph) -> dict[str, Any]:
    names = [step.name for step in graph.steps if step.name in state.answers]
    return {name: {key: state.answers[name][key] for key in STEP_KEYS if key in state.answers[name]} for name in names}


def _where(state: RowState) -> str:
    return f"{state.file}:{state.line}" if state.file is not None else f"row {state.key}"
