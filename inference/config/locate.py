"""Finds the directory of a model: a given directory, the packaged demo, a named model on disk, or one on a hub.

Knows where models are kept and how to download them; knows nothing about their contents. Downloads only safetensors
weights, JSON and tokenizer files: no pickles and no code.
"""

from __future__ import annotations

import os
import re
import textwrap
from pathlib import Path

from inference.config.presets import find_preset, is_preset, list_presets, normal_name
from inference.config.schema import InferenceConfig
from inference.config.yaml_file import read_yaml
from inference.errors import ModelNotFoundError, nearest

HOME_VARIABLE = "INFERENCE_MODEL_HOME"
DOWNLOADS = Path("checkpoint_download")
# Models that come with this package, in directories of these names.
DEMOS = ("demo", "demo_t5")
_PACKAGE = Path(__file__).resolve().parents[1]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*\Z")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*\Z")
_WANTED = ("*.safetensors", "*.json", "*.model", "*.jinja", "merges.txt", "vocab.txt")
_UNWANTED = ("consolidated*", "original/*", "onnx/*", "*/*")
_LONGEST_REASON = 160  # characters of a download error to repeat in a message
_TRUE_WORDS = ("1", "ON", "YES", "TRUE")


def locate_model(name_or_dir: str | Path, *, config: InferenceConfig | None = None) -> Path:
    """Finds the directory of a model.

    Tries, in this order: `demo` and `demo_t5`, which come with the package; an existing directory or GGUF file;
    `$INFERENCE_MODEL_HOME/<name>` and `./checkpoint_download/<name>`; a download of the preset's `model.hub_id`, or of
    an `org/name`, with huggingface_hub, which uses only its cache if HF_HUB_OFFLINE is set.

    Args:
        name_or_dir: a directory, a preset's name, or a Hugging Face repository id.
        config: the config that names the model, for its `model.hub_id`.

    Raises:
        ModelNotFoundError: the model was not found; the message says where the search went and what to do.
    """
    name = str(name_or_dir)
    if name in DEMOS:
        return _demo(name)
    if not name.strip() or "\0" in name:
        raise ModelNotFoundError("no model is named", "give a directory, a preset's name, or an org/name")
    path = Path(os.path.expanduser(name))  # noqa: PTH111  (Path.expanduser fails for unknown users)
    if path.is_dir() or (path.suffix == ".gguf" and path.is_file()):
        return path
    if path.is_file():
        hint = "give its directory, or a .gguf file; other files of weights go into load_checkpoint"
        raise ModelNotFoundError(f"{name} is a file, not a model directory", hint)
    if not (_NAME.match(name) or _HUB_ID.match(name)):
        kind = "GGUF file" if path.suffix == ".gguf" else "model directory"
        raise ModelNotFoundError(f"there is no {kind} {name}", _nearest_directory(path))
    places = _places(name)
    found = next((place for place in places if place.is_dir() and any(place.iterdir())), None)
    return found or _fetched(name, places, hub_id_of(name, config))


def hub_id_of(name: str, config: InferenceConfig | None = None) -> str | None:
    """Returns the Hugging Face repository of a named model, or None.

    A `model.hub_id` in the config overrides the preset's own, so that a copy of a preset can name another repository,
    unless the command line named the model.
    """
    if _HUB_ID.match(name):
        return name
    if config is not None and config.model.hub_id and not config.origin("pretrained_model_dir").startswith("-"):
        return config.model.hub_id
    if is_preset(name):
        path = find_preset(name)
        hub_id: str | None = read_yaml(path, str(path)).get(("model", "hub_id"))
        return hub_id
    return None


def _demo(name: str) -> Path:
    if not (_PACKAGE / name).is_dir():
        raise ModelNotFoundError(f"the model {name} is missing from this installation", "install the project again")
    return _PACKAGE / name


def _places(name: str) -> list[Path]:
    home = os.environ.get(HOME_VARIABLE)
    roots = [Path(home).expanduser(), DOWNLOADS] if home else [DOWNLOADS]
    names = list(dict.fromkeys([name, normal_name(name) if is_preset(name) else name]))
    return [root / spelling for root in roots for spelling in names]


def _fetched(name: str, places: list[Path], hub_id: str | None) -> Path:
    if hub_id is None:
        raise _not_found(name, places, None, None)
    try:
        from huggingface_hub import snapshot_download

        return Path(
            snapshot_download(
                hub_id,
                allow_patterns=list(_WANTED),
                ignore_patterns=list(_UNWANTED),
                local_files_only=_offline(),
            )
        )
    except Exception as error:  # the network, a proxy, a full disk, the hub: report any failure in one line
        raise _not_found(name, places, hub_id, error) from None


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE_WORDS


def _not_found(name: str, places: list[Path], hub_id: str | None, error: Exception | None) -> ModelNotFoundError:
    looked = ", ".join(str(place) for place in places)
    if not os.environ.get(HOME_VARIABLE):
        looked += f" (${HOME_VARIABLE} is not set)"
    if hub_id is not None:
        looked += f", and the Hugging Face repository {hub_id}: {_reason(error)}"
    close = None if hub_id else nearest(name, (*DEMOS, *(preset.name for preset in list_presets())))
    hint = f"put its files into {DOWNLOADS / name}, or set pretrained_model_dir to their directory"
    if close:
        hint = f"did you mean '{close}'? Otherwise {hint}"
    if hub_id and error is not None and not isinstance(error, ImportError) and not _offline():
        hint += "; behind a proxy set HTTPS_PROXY, for a mirror HF_ENDPOINT"
    return ModelNotFoundError(f"the model '{name}' was not found in {looked}", hint)


def _reason(error: Exception | None) -> str:
    if isinstance(error, ImportError):
        return "huggingface_hub is not installed"
    if _offline():
        return "not in its cache, and HF_HUB_OFFLINE is set"
    return textwrap.shorten(f"{type(error).__name__}: {error}", _LONGEST_REASON, placeholder="...").rstrip(" .:;")


def _nearest_directory(path: Path) -> str:
    parent = path.parent
    names = (
        sorted(entry.name for entry in parent.iterdir() if entry.is_dir() or entry.suffix == ".gguf")
        if parent.is_dir()
        else []
    )
    close = nearest(path.name, names)
    return f"did you mean '{parent / close}'?" if close else "give a directory, a preset's name, or an org/name"
