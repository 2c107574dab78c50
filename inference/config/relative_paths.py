"""Relative paths in a YAML file: each means a file beside the YAML, or, if there is none, one in the working directory.

Knows which keys name files to read. Files that a run writes lie in the working directory, wherever the YAML is.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from typing import Any

from inference.config.known_keys import MODEL
from inference.config.layer import KeyPath, Layer
from inference.config.presets import is_preset

ANY = "*"  # each key of a mapping
TOKENIZER = ("processor", "tokenizer")
INPUT_PATHS: tuple[KeyPath, ...] = (
    ("load_checkpoint",),
    ("pretrained_model_dir",),
    ("checkpoint_name_or_path",),
    (*MODEL, "checkpoint_name_or_path"),
    *((*TOKENIZER, name) for name in ("vocab_file", "tokenizer_file", "merges_file", "checkpoint_name_or_path")),
    ("adapters", ANY),
    ("input_data",),
    ("evaluate", "compare_with"),
    ("validation", "baseline"),
    ("pipeline", "steps", ANY, "config"),
    ("generation_config", "structured_outputs", "json"),
    ("serve", "certificate"),
    ("serve", "certificate_key"),
)


def resolve_relative_paths(layer: Layer, folder: str) -> None:
    """Puts the folder of a YAML before each relative path in it that exists there."""
    if folder in ("", "."):
        return
    for pattern in INPUT_PATHS:
        for path in _matching(layer.values, pattern, ()):
            value = layer.get(path)
            if isinstance(value, list):
                layer.put(path, [_resolved(item, folder) for item in value])
            else:
                layer.put(path, _resolved(value, folder))


def _matching(values: Any, pattern: KeyPath, above: KeyPath) -> Iterator[KeyPath]:
    """Yields the paths of the keys that are set and match a pattern."""
    if not pattern:
        yield above
        return
    keys = list(values) if isinstance(values, dict) and pattern[0] == ANY else [pattern[0]]
    for key in keys:
        if isinstance(values, dict) and key in values:
            yield from _matching(values[key], pattern[1:], (*above, key))


def _resolved(value: Any, folder: str) -> Any:
    if not isinstance(value, str) or not value.strip() or value == "-" or os.path.isabs(value):  # noqa: PTH117
        return value
    beside = os.path.normpath(os.path.join(folder, value))  # noqa: PTH118
    is_there = bool(glob.glob(beside, recursive=True)) if glob.has_magic(value) else os.path.exists(beside)  # noqa: PTH110, PTH207
    return beside if is_there and not is_preset(value) else value
