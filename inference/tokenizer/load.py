"""Finds and loads the tokenizer of a model directory, or the one named in a YAML.

Knows file names; leaves the contents of the files to the other modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inference.errors import TokenizerError
from inference.tokenizer.base import Tokenizer
from inference.tokenizer.chatglm import GLM4_SPECIAL, ROLES, of_bytes
from inference.tokenizer.json_tokenizer import read_json_tokenizer
from inference.tokenizer.pre_tokenizers import PRE_TOKENIZERS
from inference.tokenizer.sentencepiece_tokenizer import read_sentencepiece
from inference.tokenizer.tiktoken_file import is_tiktoken, read_tiktoken
from inference.tokenizer.tokenizer_config import TOKEN_NAMES, TokenizerConfig, read_tokenizer_config

# Settings that hold a file name.
FILE_KEYS = ("tokenizer_file", "vocab_file")
GGUF_SUFFIX = ".gguf"
JSON_NAME = "tokenizer.json"
MODEL_NAMES = ("tokenizer.model", "spiece.model")


def load_tokenizer(
    directory: str | Path | None, *, settings: Mapping[str, Any] | None = None, usual_class: str | None = None
) -> Tokenizer:
    """Loads the tokenizer of `directory`, which may be a GGUF file.

    Prefers tokenizer.json to tokenizer.model, as transformers does.

    Args:
        directory: a model directory; None if the settings name the file.
        settings: `processor.tokenizer` of a YAML: vocab_file, tokenizer_file (relative to the working
            directory, or else to `directory`), and any key of tokenizer_config.json, which overrides the
            files. None values and unknown keys are ignored.
        usual_class: default tokenizer class, one of `chatglm.CLASSES`, if neither settings (`type`) nor files name
            one.

    Raises:
        TokenizerError: there is no tokenizer, or it cannot be read; the message names the path.
    """
    try:
        return _loaded(directory, settings or {}, usual_class)
    except UnicodeError as error:
        raise TokenizerError(
            f"the tokenizer of {directory} holds a token that is not valid Unicode ({error})"
        ) from error


def _loaded(directory: str | Path | None, settings: Mapping[str, Any], usual_class: str | None) -> Tokenizer:
    root = None if directory is None else Path(directory)
    if root is not None and root.suffix == GGUF_SUFFIX and root.is_file():
        from inference.tokenizer.gguf_tokenizer import gguf_settings, read_gguf_tokenizer

        if not any(settings.get(key) for key in FILE_KEYS):
            return read_gguf_tokenizer(root, settings, usual_class)
        # Use another vocabulary with the GGUF file's template, and with its special tokens that this vocabulary has.
        bare = load_tokenizer(root.parent, settings=settings, usual_class=usual_class)
        own = {
            key: value
            for key, value in gguf_settings(root).items()
            if key not in TOKEN_NAMES or bare.token_to_id(value) is not None
        }
        given = {key: value for key, value in settings.items() if value is not None}
        return load_tokenizer(root.parent, settings={**own, **given}, usual_class=usual_class)
    path = _named_file(root, settings) or _found_file(root)
    is_json, beside = path.suffix == ".json", _config_directory(path, root)
    if is_json or is_tiktoken(path):
        usual_class = of_bytes(usual_class)
    config = read_tokenizer_config(beside, settings, usual_class)
    if is_json:
        return read_json_tokenizer(path, config)
    if config.prefixes is not None and is_tiktoken(path):
        return _glm4_tokenizer(path, config)
    return read_sentencepiece(path, config)


def _glm4_tokenizer(path: Path, config: TokenizerConfig) -> Tokenizer:
    """Reads GLM-4's tokenizer, the only tiktoken file whose regular expression is known."""
    return read_tiktoken(path, config, PRE_TOKENIZERS["glm4"], (*GLM4_SPECIAL, *ROLES))


def _named_file(root: Path | None, settings: Mapping[str, Any]) -> Path | None:
    """Returns the tokenizer file named in the settings, or None."""
    for key in FILE_KEYS:
        if settings.get(key):
            path = _existing(Path(str(settings[key])).expanduser(), root, key)
            beside = path.with_name(JSON_NAME)
            # These come with an equivalent tokenizer.json.
            # Qwen's vocab.json also needs merges.txt, and Llama 3's file also needs its regular expression.
            is_half = path.name == "vocab.json" or is_tiktoken(path)
            return beside if is_half and beside.is_file() else path
    return None


def _existing(path: Path, root: Path | None, key: str) -> Path:
    places = [path] if root is None or path.is_absolute() else [path, root / path]
    for place in places:
        if place.is_file():
            return place
    looked = " or ".join(str(place) for place in places)
    raise TokenizerError(f"{key} names a file that is not there: {looked}", "give the path of a tokenizer file")


def _found_file(root: Path | None) -> Path:
    if root is None:
        raise TokenizerError("no tokenizer is given", "give a model directory or vocab_file")
    if not root.is_dir():
        raise TokenizerError(f"no tokenizer in {root}: there is no such directory")
    for name in (JSON_NAME, *MODEL_NAMES):
        if (root / name).is_file():
            return root / name
    raise TokenizerError(f"no tokenizer in {root}", f"it must hold {JSON_NAME} or {' or '.join(MODEL_NAMES)}")


def _config_directory(path: Path, root: Path | None) -> Path:
    """Returns the directory of the tokenizer's config files: the tokenizer's own, or the model directory."""
    beside = path.parent
    return root if root is not None and not (beside / "tokenizer_config.json").is_file() else beside
