"""The presets: YAML files that ship with the project, looked up by model name.

Knows where they are and how they are named; knows nothing about weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from inference.config.yaml_file import read_yaml
from inference.errors import ModelNotFoundError, did_you_mean

_PACKAGE = Path(__file__).resolve().parents[1]
_PREFIX = "predict_"
_BASE_FAMILY = "base"


@dataclass(frozen=True)
class Preset:
    """One preset.

    Args:
        name: name of the preset: `qwen2_5_7b`.
        path: its YAML file.
        family: the directory it is in: `qwen2_5`.
        parameters: number of parameters of the model; None if the file does not give it.
        hub_id: the Hugging Face repository of the weights, if there is one.
    """

    name: str
    path: Path
    family: str
    parameters: int | None
    hub_id: str | None


def presets_directory() -> Path:
    """Returns `configs/` of the repository that this package runs from, or else the copy inside the package."""
    beside = _PACKAGE.parent / "configs"
    # In site-packages, `configs` may belong to another package: MindFormers installs one.
    is_repository = (_PACKAGE.parent / "run_inference.py").is_file() and beside.is_dir()
    return beside if is_repository else _PACKAGE / "configs"


def find_preset(name: str) -> Path:
    """Finds the YAML file of a preset.

    Args:
        name: name of the preset; `qwen2_5_7b` and `Qwen2.5-7B` are equivalent.

    Raises:
        ModelNotFoundError: there is no such preset; the message names the nearest one.
    """
    paths = _paths()
    key = normal_name(name)
    if key in paths:
        return paths[key]
    hint = did_you_mean(key, paths) or f"known: {', '.join(paths)}"
    raise ModelNotFoundError(f"there is no preset '{name}'", hint)


def is_preset(name: str) -> bool:
    """Returns whether `name` is the name of a preset."""
    return normal_name(name) in _paths()


def list_presets() -> list[Preset]:
    """Lists all presets, sorted by family and size."""
    presets = [_preset(name, path) for name, path in _paths().items()]
    return sorted(presets, key=lambda preset: (preset.family, preset.parameters or 0, preset.name))


def normal_name(name: str) -> str:
    """Normalizes a name: `Qwen2.5-7B` becomes `qwen2_5_7b`."""
    return re.sub(r"[-.\s]", "_", name.lower())


def _paths() -> dict[str, Path]:
    return dict(_files(presets_directory()))


def _files(directory: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(directory.glob(f"*/{_PREFIX}*.yaml")):
        if path.parent.name != _BASE_FAMILY:
            yield path.stem.removeprefix(_PREFIX), path


def _preset(name: str, path: Path) -> Preset:
    layer = read_yaml(path, str(path))
    return Preset(
        name=name,
        path=path,
        family=path.parent.name,
        parameters=layer.get(("model", "parameters")),
        hub_id=layer.get(("model", "hub_id")),
    )
