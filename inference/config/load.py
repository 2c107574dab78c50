"""Loads a config: merges files, their base configs and overrides, validates the result and freezes it.

Knows the order of sources; `schema` and `known_keys` have the keys, `error_messages` the wording of mistakes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations, takewhile
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from inference.config.error_messages import BASE_KEY, report
from inference.config.known_keys import (
    NEGATED,
    NOT_ACTED_ON,
    RENAMED,
    RIVALS,
    SYNONYMS,
    TYPED_BUT_NOT_ACTED_ON,
)
from inference.config.layer import KeyPath, Layer, dotted, lay_all, layer_from_mapping
from inference.config.overrides import Override
from inference.config.problems import Problem, problems_of, show
from inference.config.relative_paths import resolve_relative_paths
from inference.config.schema import InferenceConfig
from inference.config.yaml_file import read_yaml
from inference.errors import ConfigError

_MODEL_CONFIG = ("model", "model_config")


def load_config(source: str | Path | Mapping[str, Any], *, overrides: Sequence[Override] = ()) -> InferenceConfig:
    """Loads a config.

    Args:
        source: path of a YAML file, or a mapping with the same keys. `base_config` in a file names a file or a list
            of files, relative to it. Their settings are merged key by key: later base configs override earlier ones,
            and the file overrides them all.
        overrides: settings that override the file; later ones win.

    Raises:
        ConfigError: a file cannot be read, a key is unknown, or a value is invalid. The message is one line that begins
            with `file:line` or the flag, and lists every mistake.
    """
    if isinstance(source, Mapping):
        layers, sources = [layer_from_mapping(source)], []
    else:
        files = list(_files(Path(source), str(source) or ".", ()))
        layers, sources = [layer for layer, _ in files], [shown for _, shown in files]
    return _build([*layers, *_layers(overrides)], sources)


def override_config(config: InferenceConfig, overrides: Sequence[Override]) -> InferenceConfig:
    """Returns a copy of `config` with further overrides applied.

    Raises:
        ConfigError: a key is unknown, or a value is invalid.
    """
    return _build([*config._given, *_layers(overrides)], config.sources)


def _layers(overrides: Sequence[Override]) -> list[Layer]:
    """Makes the layers of a command line. A key may be repeated, but not under another name with a different value."""
    layers = [override.layer() for override in overrides]
    _renamed(lay_all(layers))
    return layers


def _files(path: Path, shown: str, children: tuple[str, ...]) -> Iterator[tuple[Layer, str]]:
    """Yields the layers of the file's base configs, lowest precedence first, then that of the file itself."""
    layer = read_yaml(path, shown)
    line = layer.origin((BASE_KEY,))
    for name in _base_names(layer.remove((BASE_KEY,)), line):
        base = os.path.normpath(os.path.join(os.path.dirname(shown), name))  # noqa: PTH118, PTH120
        if os.path.realpath(base) in (*children, os.path.realpath(path)):
            raise ConfigError(f"{line}: base_config leads back to {base}", "remove one base_config of the circle")
        if not Path(base).is_file():
            raise ConfigError(f"{line}: base_config: there is no file {base}", f"it is relative to {shown}")
        yield from _files(Path(base), base, (*children, os.path.realpath(path)))
    resolve_relative_paths(layer, os.path.dirname(shown))  # noqa: PTH120
    yield layer, shown


def _base_names(value: Any, where: str) -> list[str]:
    names = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{where}: base_config must be the path of a file, or a list of them, got {show(value)}")
    return names


def _renamed(layer: Layer) -> Layer:
    """Renames keys so that each has one name; two names with different values in one layer are a mistake."""
    for old, new in [*RENAMED.items(), *NEGATED.items()]:
        value = layer.get(old)
        if value is None:
            layer.remove(old)
            continue
        if old in NEGATED and isinstance(value, bool):
            layer.put(old, not value)
        _refuse_difference(layer, old, new)
        layer.move(old, new)
    for group in SYNONYMS:
        for first, second in combinations(group, 2):
            _refuse_difference(layer, first, second)
    return layer


def _refuse_difference(layer: Layer, first: KeyPath, second: KeyPath) -> None:
    one, other = layer.get(first), layer.get(second)
    if one is not None and other is not None and one != other:
        raise ConfigError(
            f"{layer.origin(second)}: {dotted(second)} is {show(other)} and {_apart(first, second)} is {show(one)}",
            "they are the same setting; keep one",
        )


def _apart(path: KeyPath, other: KeyPath) -> str:
    """Returns a key's dotted name without the prefix that it shares with the other key."""
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(path[:-1], other[:-1], strict=False)))
    return dotted(path[common:])


def _build(given: Sequence[Layer], sources: Iterable[str]) -> InferenceConfig:
    layer = lay_all([_renamed(layer.copy()) for layer in given], RIVALS)
    values, unused = _split_unused(layer.values, ())
    config = _validated(_without_nulls(values, ()), layer)
    config._layer, config._given, config._sources, config._unused = layer, tuple(given), tuple(sources), tuple(unused)
    return config


def _split_unused(values: Any, path: KeyPath) -> tuple[Any, list[KeyPath]]:
    """Splits values into those that have an effect and the paths of those that have none."""
    if not isinstance(values, dict):
        return values, []
    kept, unused = {}, []
    for key, value in values.items():
        here = (*path, key)
        if key in NOT_ACTED_ON.get(path, ()):
            unused.append(here)
            continue
        if key in TYPED_BUT_NOT_ACTED_ON.get(path, ()):
            unused.append(here)
        kept[key], below = _split_unused(value, here)
        unused += below
    return kept, unused


def _without_nulls(values: dict[str, Any], path: KeyPath) -> dict[str, Any]:
    """Drops null keys, except those of the model, where null removes a key of config.json."""
    if path == _MODEL_CONFIG:
        return values
    return {
        key: _without_nulls(value, (*path, key)) if isinstance(value, dict) else value
        for key, value in values.items()
        if value is not None
    }


def _validated(values: dict[str, Any], layer: Layer) -> InferenceConfig:
    try:
        return InferenceConfig.model_validate(values)
    except ValidationError as error:
        problems = problems_of(error)
    if _take_alternatives(values, problems, layer):
        return _validated(values, layer)
    raise report(problems, layer)


def _take_alternatives(values: dict[str, Any], problems: list[Problem], layer: Layer) -> bool:
    """Replaces invalid command-line values by their alternatives; returns whether there were any."""
    checked = Layer(values)
    taken = False
    for problem in problems:
        path = next((p for p in layer.alternatives if problem.path[: len(p)] == p), None)
        if path is None or problem.unknown or problem.out_of_range:
            continue
        alternative = layer.alternatives.pop(path)
        if alternative is not None:
            checked.put(path, alternative)
            layer.put(path, alternative)
        taken = True
    return taken
