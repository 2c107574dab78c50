"""Finds the directory of a model: a given directory, the packaged demo, a named model on disk, or one on a hub.

Knows where models are kept and how to download them; knows nothing about their contents. Downloads only safetensors
weights, JSON and tokenizer files: no pickles and no code.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
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
_LONGEST_NAME = 96  # characters of a name on the hub
_WANTED = ("*.safetensors", "*.json", "*.model", "*.jinja", "merges.txt", "vocab.txt")
_UNWANTED = ("consolidated*", "original/*", "onnx/*", "*/*")
_LONGEST_REASON = 160  # characters of a download error to repeat in a message
_SENTENCE_END = re.compile(r"(?<=[.!?])\s")
_TRUE_WORDS = ("1", "ON", "YES", "TRUE")
_MODEL_NAMES = "give a directory, a GGUF file, a preset's name, or an org/name on Hugging Face"
# Names of huggingface_hub's errors; the package is imported only to download.
_NOT_IN_CACHE = "LocalEntryNotFoundError"
_NO_ACCESS = {
    "RepositoryNotFoundError": "no such repository, or it is private",
    "GatedRepoError": "its owner asks users to accept terms first",
}


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
    is_gguf = path.suffix.lower() == ".gguf"
    if _is(path.is_dir) or (is_gguf and _is(path.is_file)):
        return path
    if _is(path.is_file):
        hint = "give its directory, or a .gguf file; other files of weights go into load_checkpoint"
        raise ModelNotFoundError(f"{name} is a file, not a model directory", hint)
    if is_gguf or len(name) > _LONGEST_NAME or not (_NAME.match(name) or _HUB_ID.match(name)):
        kind = "GGUF file" if is_gguf else "model directory"
        hint = f"did you mean '{close}'?" if (close := nearest_model(path)) else _MODEL_NAMES
        raise ModelNotFoundError(f"there is no {kind} {name}", hint)
    places = _places(name)
    found = next((place for place in places if place.is_dir() and any(place.iterdir())), None)
    return found or _fetched(name, places, hub_id_of(name, config))


def _is(test: Callable[[], bool]) -> bool:
    try:
        return test()
    except OSError:  # too long for a path
        return False


def place_on_disk(name: str, hub_id: str | None) -> str | None:
    """Returns where a preset's files lie on this machine, in a few words; None if they have yet to be downloaded."""
    if name in DEMOS:
        return "this package"
    for place in _places(name):
        if place.is_dir() and any(place.iterdir()):
            return str(place.parent)
    if hub_id is None:
        return None
    snapshots = _hub_cache() / f"models--{hub_id.replace('/', '--')}" / "snapshots"
    return "hub cache" if any(snapshots.glob("*/*.safetensors")) else None


def _hub_cache() -> Path:
    """Returns the directory of huggingface_hub's downloads, by its documented variables; importing it takes long."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache).expanduser()
    home = os.environ.get("HF_HOME")
    cache_home = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(home or f"{cache_home}/huggingface").expanduser() / "hub"


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
    close = nearest_model(Path(name)) or (None if hub_id else _nearest_preset(name))
    hint = f"put its files into {DOWNLOADS / name}, or set pretrained_model_dir to their directory"
    if close:
        hint = f"did you mean '{close}'? Otherwise {hint}"
    if hub_id and error is not None and not isinstance(error, ImportError):
        hint = f"{_remedy(error)}; or {hint}"
    return ModelNotFoundError(f"the model '{name}' was not found in {looked}", hint)


def _reason(error: Exception | None) -> str:
    """Returns why a download failed, in at most one sentence."""
    if isinstance(error, ImportError):
        return "huggingface_hub is not installed (pip install huggingface_hub)"
    if _offline():
        return "not in its cache, and HF_HUB_OFFLINE is set"
    kind = type(error).__name__
    if kind in _NO_ACCESS:
        return _NO_ACCESS[kind]
    # huggingface_hub wraps what happened to the connection in several errors, the last one about its cache.
    innermost = _innermost(error)
    if isinstance(innermost, OSError) and innermost.strerror:
        return f"the hub could not be reached: {innermost.strerror}"
    if kind == _NOT_IN_CACHE:
        return "the hub could not be reached"
    sentence = _SENTENCE_END.split(" ".join(str(error).split()), maxsplit=1)[0].rstrip(" .:;")
    if len(sentence) > _LONGEST_REASON:
        sentence = f"{sentence[:_LONGEST_REASON].rpartition(' ')[0]} ..."
    return f"{kind}: {sentence}" if sentence else kind


def _innermost(error: BaseException | None) -> BaseException | None:
    while error is not None and (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return error


def _remedy(error: Exception) -> str:
    if _offline():
        return "unset HF_HUB_OFFLINE to download it"
    if type(error).__name__ in _NO_ACCESS:
        return "check the name; for a gated or private model accept its terms and set HF_TOKEN"
    return (
        "behind a proxy set HTTPS_PROXY; for a mirror set HF_ENDPOINT; to use only downloaded files set "
        "HF_HUB_OFFLINE=1"
    )


def nearest_model(path: Path) -> str | None:
    """Returns the model directory or GGUF file beside `path` whose name is closest to its name, or None."""
    parent = path.parent
    try:
        entries = [entry for entry in parent.iterdir() if entry.is_dir() or entry.suffix.lower() == ".gguf"]
    except OSError:
        return None
    close = nearest(path.name, sorted(entry.name for entry in entries))
    return str(parent / close) if close else None


def _nearest_preset(name: str) -> str | None:
    return nearest(name, (*DEMOS, *(preset.name for preset in list_presets())))
