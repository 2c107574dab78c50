"""The steps of a pipeline as a graph: their order, the rows each step gets, and the variables its template may use.

Knows names and shares; knows nothing about models or pipelines. Every mistake in a graph is detected here, before
anything starts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from inference.beam.pipeline.templates import Template
from inference.config.schema import PipelineSettings, StepSettings
from inference.errors import ConfigError, did_you_mean

# Variables of a template besides the names of steps.
GIVEN = ("prompt", "row", "answer")
ONLY_STEP = "model"
# For each split that a row passed, the steps that it may have taken; empty if no split applies.
Reach = Mapping[int, frozenset[str]]


@dataclass(frozen=True)
class Step:
    """One model, and the source of its rows.

    Args:
        parents: the steps that it waits for, in groups of alternatives; each row has one answer from each group. Empty
            for a step on the input.
        answer_of: the steps that `answer` in its template refers to.
        split: number of the split that it belongs to.
    """

    name: str
    settings: StepSettings
    parents: tuple[tuple[str, ...], ...] = ()
    answer_of: tuple[str, ...] = ()
    split: int | None = None
    template: Template | None = None

    @property
    def is_foreign(self) -> bool:
        """Whether its handler is from another project."""
        return self.settings.handler is not None

    @property
    def needs_prompt(self) -> bool:
        """Whether it needs rows with a prompt."""
        own = self.template is None and self.settings.field is None and self.settings.prepare is None
        return own or (self.template is not None and "prompt" in self.template.names)


@dataclass(frozen=True)
class Graph:
    """Steps, sorted so that each comes after its parents."""

    steps: tuple[Step, ...]
    splits: tuple[Mapping[str, float], ...] = ()
    output: str | None = None
    children: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def sinks(self) -> tuple[str, ...]:
        """The last steps, which no other step waits for."""
        return tuple(step.name for step in self.steps if not self.children.get(step.name))

    @property
    def needs_prompt(self) -> bool:
        return any(step.needs_prompt for step in self.steps)

    @property
    def fields(self) -> frozenset[str]:
        """Keys of rows that steps use."""
        return frozenset(step.settings.field for step in self.steps if step.settings.field is not None)

    @property
    def comes_together(self) -> bool:
        """Whether a row has several branches whose results must be merged at the end."""
        ways = [self.children.get(step.name, ()) for step in self.steps]
        ways.append(tuple(step.name for step in self.steps if not step.parents))
        split_of = {step.name: step.split for step in self.steps}
        return any(len({(split_of[name] is None and name) or split_of[name] for name in way}) > 1 for way in ways)

    @property
    def answers_per_row(self) -> float:
        """Number of answers that a row gets; the mean if there are splits."""
        shares: dict[str, float] = {}
        for step in self.steps:
            # All groups of parents answer the same rows.
            before = sum(shares[name] for name in step.parents[0]) if step.parents else 1.0
            shares[step.name] = before * (1.0 if step.split is None else self.splits[step.split][step.name])
        return sum(shares.values())

    def goes_to(self, step: Step, key: str) -> bool:
        """Whether the row with this name goes to the step."""
        if step.split is None:
            return True
        return chosen(self.splits[step.split], step.split, key) == step.name


def chosen(shares: Mapping[str, float], number: int, key: str) -> str:
    """The step of split `number` that a row goes to. The same name always gives the same step."""
    digest = blake2b(f"{number} {key}".encode("utf-8", "replace"), digest_size=8).digest()
    place, so_far = int.from_bytes(digest, "big") / 2**64, 0.0
    for name, share in shares.items():
        so_far += share
        if place < so_far:
            return name
    return list(shares)[-1]


def graph_of(settings: PipelineSettings) -> Graph:
    """Build and check the graph of a config.

    Raises:
        ConfigError: a step is unknown, steps form a cycle, or a share or template is invalid.
    """
    steps = settings.steps or {ONLY_STEP: StepSettings()}
    for name in steps:
        if not name.isidentifier() or name in GIVEN:
            raise _wrong(name, "is not a valid name for a step", f"letters, digits and _; not {', '.join(GIVEN)}")
        _check_kind(name, steps[name])
    splits = _splits(settings.splits, steps)
    split_of = {name: number for number, shares in enumerate(splits) for name in shares}
    built: dict[str, Step] = {}
    reaches: dict[str, Reach] = {}
    before: dict[str, set[str]] = {}
    for name in _ordered(steps):
        after = steps[name].after or ()
        before[name] = {*after, *(other for parent in after for other in before[parent])}
        built[name], reaches[name] = _step(name, steps[name], split_of.get(name), splits, reaches, before[name])
    for number, shares in enumerate(splits):
        if len({(built[name].parents, frozenset(reaches[name]) - {number}) for name in shares}) > 1:
            raise ConfigError(
                f"pipeline.splits: {', '.join(shares)} do not come after the same steps", "a split has one place"
            )
    if settings.output is not None and settings.output not in steps:
        raise _unknown("pipeline.output", settings.output, steps)
    parents = {name: [parent for group in step.parents for parent in group] for name, step in built.items()}
    children = {name: tuple(child for child in built if name in parents[child]) for name in built}
    return Graph(tuple(built.values()), splits, settings.output, children)


def _check_kind(name: str, settings: StepSettings) -> None:
    given = [
        key
        for key, value in (
            ("config", settings.config or settings.options),
            ("remote", settings.remote),
            ("handler", settings.handler),
        )
        if value
    ]
    if len(given) > 1:
        raise _wrong(name, f"has both {' and '.join(given)}", "give a step one model")
    if settings.handler is None:
        for key in ("result", "prepare", "field"):
            if getattr(settings, key):
                raise _wrong(name, f"has {key}, which is for steps with a handler of another project", "remove it")
    if settings.template is not None and settings.field is not None:
        raise _wrong(name, "has both template and field", "one of them says what the model is given")


def _splits(splits: Sequence[Mapping[str, float]], steps: Mapping[str, Any]) -> tuple[Mapping[str, float], ...]:
    seen: set[str] = set()
    for shares in splits:
        for name, share in shares.items():
            if name not in steps:
                raise _unknown("pipeline.splits", name, steps)
            if name in seen:
                raise ConfigError(f"pipeline.splits: {name} is in two splits")
            if not 0 < share <= 1:
                raise ConfigError(f"pipeline.splits: the share of {name} is {share:g}", "above 0 and at most 1")
            seen.add(name)
        if not math.isclose(sum(shares.values()), 1.0, abs_tol=1e-6):
            raise ConfigError(
                f"pipeline.splits: the shares of {', '.join(shares)} add up to {sum(shares.values()):g}", "to 1"
            )
    return tuple(splits)


def _ordered(steps: Mapping[str, StepSettings]) -> list[str]:
    """Names of steps in topological order."""
    done: list[str] = []
    waiting = list(steps)
    for name, settings in steps.items():
        for parent in settings.after or ():
            if parent not in steps:
                raise _unknown(f"pipeline.steps.{name}.after", parent, steps)
    while waiting:
        ready = [name for name in waiting if set(steps[name].after or ()) <= set(done)]
        if not ready:
            raise ConfigError(
                f"pipeline.steps: {', '.join(waiting)} wait for one another", "there must be a first step"
            )
        done += ready
        waiting = [name for name in waiting if name not in ready]
    return done


def _step(
    name: str,
    settings: StepSettings,
    split: int | None,
    splits: Sequence[Mapping[str, float]],
    reaches: Mapping[str, Reach],
    before: set[str],
) -> tuple[Step, Reach]:
    groups, reach = _parents(name, settings.after or (), reaches, splits)
    # Every row that reaches this step has an answer from each of these.
    named = {other for other in before if _covers(reaches[other], reach)}
    unnamed = [group for group in groups if not set(group) <= named]
    answer_of = groups[0] if len(groups) == 1 else unnamed[0] if len(unnamed) == 1 else ()
    template = None
    if settings.template is not None:
        template = Template(settings.template, f"pipeline.steps.{name}.template")
        for word in sorted(template.names - {"prompt", "row"}):
            if word == "answer" and answer_of:
                continue
            if word not in named:
                raise _bad_name(name, word, named, answer_of)
    elif groups and settings.prepare is None and settings.field is None:
        raise _wrong(
            name, f"comes after {', '.join(settings.after or ())} and has no template", "say what the model is asked"
        )
    own = dict(reach)
    if split is not None:
        own[split] = frozenset({name})
    return Step(name, settings, groups, answer_of, split, template), own


def _parents(
    name: str, after: Sequence[str], reaches: Mapping[str, Reach], splits: Sequence[Mapping[str, float]]
) -> tuple[tuple[tuple[str, ...], ...], Reach]:
    """The parents in groups of alternatives, and the rows that reach the step."""
    groups: list[tuple[tuple[str, ...], Reach]] = [((parent,), reaches[parent]) for parent in dict.fromkeys(after)]
    merged = True
    while merged:
        merged = False
        for one in groups:
            other = next((g for g in groups if g is not one and _alternative(one[1], g[1]) is not None), None)
            if other is not None:
                number = _alternative(one[1], other[1])
                assert number is not None
                both = dict(one[1]) | {number: one[1][number] | other[1][number]}
                if both[number] == frozenset(splits[number]):
                    del both[number]
                groups = [g for g in groups if g is not one and g is not other] + [(one[0] + other[0], both)]
                merged = True
                break
    if len({tuple(sorted((k, tuple(sorted(v))) for k, v in reach.items())) for _, reach in groups}) > 1:
        raise _wrong(
            name, f"comes after {', '.join(after)}, which do not answer the same rows", "after steps that do, or one"
        )
    return tuple(group for group, _ in groups), groups[0][1] if groups else {}


def _alternative(one: Reach, other: Reach) -> int | None:
    """The split that sends a row to one of two steps, if the steps differ in nothing else."""
    if set(one) != set(other):
        return None
    differ = [number for number in one if one[number] != other[number]]
    return differ[0] if len(differ) == 1 and not one[differ[0]] & other[differ[0]] else None


def _covers(wide: Reach, narrow: Reach) -> bool:
    """Whether every row of `narrow` is also a row of `wide`."""
    return all(number in narrow and narrow[number] <= steps for number, steps in wide.items())


def _bad_name(name: str, word: str, named: set[str], answer_of: Sequence[str]) -> ConfigError:
    known = sorted({*named, "prompt", "row", *(["answer"] if answer_of else [])})
    return _wrong(name, f"names '{word}' in its template", did_you_mean(word, known) or f"known: {', '.join(known)}")


def _wrong(name: str, what: str, hint: str) -> ConfigError:
    return ConfigError(f"pipeline.steps: {name} {what}", hint)


def _unknown(where: str, name: str, steps: Mapping[str, Any]) -> ConfigError:
    return ConfigError(f"{where}: there is no step '{name}'", did_you_mean(name, steps) or f"known: {', '.join(steps)}")
