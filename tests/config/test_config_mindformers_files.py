"""MindFormers' own predict_*.yaml files, unmodified, of every release: they load, and run where the family runs here.

They are taken from mindformers where it is installed, and from its wheels in $MINDFORMERS_WHEELS, which
scripts/test.sh fetches.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from inference.config import InferenceConfig, Override, load_config
from inference.errors import ConfigError
from inference.models.architecture.registry import ALIASES, ARCHITECTURES
from inference.models.source import resolve

GOLDENS = Path(__file__).parents[1] / "goldens"
_FILE = re.compile(r"configs/\w+/predict_.*\.yaml$")
# Their mistake, which MindFormers reads as true.
_MISTAKES = {"predict_llama2_7b_ptuning2.yaml": "use_parallel must be true or false, got 'Flase'"}
# What asks for more than a family.
_NOT_YET = re.compile(r"asks for (adapters \(\w*prefix\w*\)|quantized weights \((ptq|rtn|smooth_quant)\))")
# Newer files have no sizes: they are in the model's own directory, which is the user's.
_MODELS = {"qwen2": "qwen2", "qwen3": "qwen3", "glm4": "glm4"}
_RELEASES = ("1.0", "1.1", "1.2", "1.3", "1.6", "1.7", "1.8", "1.9", "2.0", "2.1")


def _texts() -> dict[str, str]:
    """The files by `release/path`."""
    texts = {}
    try:
        release = importlib.metadata.version("mindformers")
        for file in importlib.metadata.files("mindformers") or []:
            if _FILE.search(str(file)):
                texts[f"{release}/{_FILE.search(str(file))[0]}"] = file.read_text(encoding="utf-8")
    except importlib.metadata.PackageNotFoundError:
        pass
    for wheel in sorted(Path(os.environ.get("MINDFORMERS_WHEELS", "/nowhere")).glob("mindformers-*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if _FILE.search(name)]
            texts |= {f"{wheel.name.split('-')[1]}/{name}": archive.read(name).decode() for name in names}
    return dict(sorted(texts.items()))


TEXTS = _texts()
pytestmark = pytest.mark.skipif(
    not TEXTS, reason="MindFormers is not installed and $MINDFORMERS_WHEELS names no wheels (is an index in reach?)"
)


def yaml_values(text: str) -> Any:
    """What libyaml reads, ten times as fast as PyYAML's own parser."""
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def written(name: str, place: Path) -> Path:
    path = place / name.rpartition("/")[2]
    path.write_text(TEXTS[name], encoding="utf-8")
    return path


@pytest.mark.parametrize("name", TEXTS)
def test_file_of_mindformers_loads(name: str, tmp_path: Path) -> None:
    path = written(name, tmp_path)
    if path.name in _MISTAKES:
        with pytest.raises(ConfigError, match=re.escape(_MISTAKES[path.name])):
            load_config(path)
        return
    config = load_config(path)
    assert config.run_mode == "predict"
    printed = tmp_path / "printed.yaml"
    printed.write_text(config.to_yaml(), encoding="utf-8")
    assert load_config(printed) == config
    # What has no effect is told once a key, with its place.
    told = [key for key, where in config.unused_keys if re.match(rf"{re.escape(str(path))}:\d+$", where)]
    assert told and len(set(told)) == len(config.unused_keys)


def family_of(text: str) -> str | None:
    """The architecture that a file names."""
    model = yaml_values(text.replace("Flase", "False"))["model"]
    return (model.get("arch") or {}).get("type") or (model.get("model_config") or {}).get("type")


NAMING = [name for name in TEXTS if family_of(TEXTS[name])]
OTHERS = [name for name in NAMING if ALIASES.get(family := str(family_of(TEXTS[name])), family) not in ARCHITECTURES]
OURS = [name for name in NAMING if name not in OTHERS and name.rpartition("/")[2] not in _MISTAKES]


@pytest.mark.parametrize("name", OTHERS)
def test_an_unsupported_family_is_named_with_the_supported_ones(name: str, tmp_path: Path) -> None:
    config = load_config(written(name, tmp_path), overrides=[Override("engine.random_weights", True, "--x")])
    with pytest.raises(ConfigError) as caught:
        resolve(config)
    family = str(family_of(TEXTS[name]))
    assert re.search(rf"\.yaml:\d+: architecture '{family}' is not supported;", str(caught.value)), caught.value
    assert all(ours in str(caught.value) for ours in ARCHITECTURES)


def _runs(config: InferenceConfig) -> list[list[int]]:
    from inference.generation.model import GenerativeModel

    source = resolve(config)
    model = GenerativeModel(source, source.pairs(), positions=64, say=print)
    return model.generate([[5, 6, 7], [8]], max_new_tokens=2, ignore_eos=True)


def _shrunk(values: dict[str, Any]) -> list[Override]:
    """Small sizes in place of a file's, in the spelling and the proportions that it has."""
    heads = 4
    sizes: dict[str, Any] = {"hidden_size": 64, "num_layers": 2, "num_heads": heads, "vocab_size": 96}
    if values.get("n_kv_heads"):
        sizes["n_kv_heads"] = 2
    for key in ("intermediate_size", "ffn_hidden_size"):
        if values.get(key):
            sizes[key] = 96
    if values.get("kv_channels"):
        sizes["kv_channels"] = 16
    return [Override(f"model.model_config.{key}", value, f"--{key}") for key, value in sizes.items()]


def _different(names: list[str]) -> list[str]:
    """One file for each text of the section `model`."""
    sections = {yaml.dump(yaml_values(TEXTS[name])["model"]): name for name in names}
    return list(sections.values())


@pytest.mark.parametrize("name", _different(OURS))
def test_a_file_of_the_older_style_runs(graph_mode, name: str, tmp_path: Path) -> None:
    path = written(name, tmp_path)
    own = yaml_values(TEXTS[name])["model"]["model_config"]
    place = [Override("context.device_target", "CPU", "--device_target"), Override("load_checkpoint", "", "--x")]
    # Many are for the processes of several devices.
    place.append(Override("use_parallel", False, "--use_parallel"))
    config = load_config(path, overrides=[*_shrunk(own), *place, Override("engine.random_weights", True, "--x")])
    try:
        rows = _runs(config)
    except ConfigError as error:
        assert _NOT_YET.search(str(error)), error
        return
    assert [len(row) for row in rows] == [5, 3]
    assert config.generation().max_length == own.get("max_length", own.get("max_decode_length"))


@pytest.mark.parametrize("name", _different([n for n in TEXTS if n.split("/")[2] in _MODELS and n not in OURS]))
def test_a_file_of_the_newer_style_runs_with_a_model_directory(graph_mode, name: str, tmp_path: Path) -> None:
    directory = str(GOLDENS / _MODELS[name.split("/")[2]])
    places = {"pretrained_model_dir": directory, "load_checkpoint": directory, "context.device_target": "CPU"}
    overrides = [Override(key, value, f"--{key}") for key, value in places.items()]
    rows = _runs(load_config(written(name, tmp_path), overrides=overrides))
    assert [len(row) for row in rows] == [5, 3]


@pytest.mark.skipif("MINDFORMERS_WHEELS" not in os.environ, reason="$MINDFORMERS_WHEELS names no wheels")
def test_every_release_is_covered() -> None:
    there = {".".join(name.split(".")[:2]) for name in TEXTS}
    assert set(_RELEASES) <= there
    assert OURS and NAMING
