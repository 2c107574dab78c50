"""Reads a tokenizer's config files and applies the settings of a MindFormers YAML on top.

The files are tokenizer_config.json, special_tokens_map.json, added_tokens.json and chat templates.
Knows the file formats of transformers 4 and 5; knows nothing about vocabularies.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inference.errors import TokenizerError
from inference.files.values import FLAG, TEXT, TEXTS, TOKEN_ID, TOKEN_TEXT, shown
from inference.tokenizer import chatglm
from inference.tokenizer.added_token import AddedToken

TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")
EXTRA_NAMES = ("additional_special_tokens", "extra_special_tokens")


@dataclass(frozen=True)
class TokenizerConfig:
    """The merged settings; None for an unset value, so that the tokenizer's own default applies.

    Args:
        tokens: text of bos_token, eos_token, unk_token and pad_token; None if a file sets it to null.
        appended: special tokens appended to a sentencepiece model's vocabulary.
        prefixes: candidate prefixes of every text; the first row whose tokens all exist is used.
    """

    tokens: Mapping[str, str | None] = field(default_factory=dict)
    extra_special: tuple[str, ...] = ()
    added: Mapping[int, AddedToken] = field(default_factory=dict)
    add_bos_token: bool | None = None
    add_eos_token: bool | None = None
    add_prefix_space: bool | None = None
    legacy: bool | None = None
    padding_side: str = "right"
    chat_templates: Mapping[str, str] = field(default_factory=dict)
    appended: tuple[str, ...] = ()
    prefixes: tuple[tuple[str, ...], ...] | None = None

    @property
    def special_contents(self) -> tuple[str, ...]:
        """Texts of all special tokens, in the order in which new ones get their ids."""
        named = [self.tokens[name] for name in TOKEN_NAMES if name in self.tokens]
        added = [token.content for _, token in sorted(self.added.items()) if token.special]
        return tuple(dict.fromkeys(content for content in [*added, *named, *self.extra_special] if content))


def read_tokenizer_config(
    directory: Path, settings: Mapping[str, Any], usual_class: str | None = None
) -> TokenizerConfig:
    """Reads the config files in `directory`.

    Args:
        settings: override the files; keys as in tokenizer_config.json, None if unset.
        usual_class: default tokenizer class, if neither files nor settings name one.

    Raises:
        TokenizerError: a file is not a JSON object, or a value has the wrong type.
    """
    path = directory / "tokenizer_config.json"
    given = {key: value for key, value in settings.items() if value is not None}
    merged = {**read_json(directory / "special_tokens_map.json"), **read_json(path), **given}
    named = given.get("type") or merged.get("tokenizer_class") or usual_class
    usual = chatglm.CLASSES.get(named, {}) if isinstance(named, str) else {}
    merged = {**usual, **merged}
    tokens = {key: token_text(merged[key], key, path) for key in TOKEN_NAMES if key in merged}
    return TokenizerConfig(
        tokens=tokens,
        extra_special=_extra_special(merged, path),
        added=_added_tokens(directory, merged, path),
        add_bos_token=_flag(merged, "add_bos_token", path),
        add_eos_token=_flag(merged, "add_eos_token", path),
        add_prefix_space=_flag(merged, "add_prefix_space", path),
        legacy=_flag(merged, "legacy", path),
        padding_side=_padding_side(merged, path),
        chat_templates=_chat_templates(directory, given, merged, path),
        appended=usual.get("appended", ()),
        prefixes=_prefixes(merged, path),
    )


def read_json(path: Path) -> dict[str, Any]:
    """Reads the object in `path`; empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerError(f"cannot read {path}: {error}", "it must be a JSON object in UTF-8") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path} holds a {type(value).__name__}", "it must be a JSON object")
    return value


def token_text(value: Any, key: str, path: Path) -> str | None:
    """Returns the text of a token given as text or as a serialized AddedToken."""
    if isinstance(value, Mapping):
        value = value.get("content")
    if value is None or TOKEN_TEXT.takes(value):
        return value or None
    hint = f"it must be {TOKEN_TEXT.accepted}, or an object with content"
    raise TokenizerError(f"{key} in {path} is {shown(value)}", hint)


def _prefixes(merged: Mapping[str, Any], path: Path) -> tuple[tuple[str, ...], ...] | None:
    given = merged.get("prefix_tokens")
    if given is None:
        return merged.get("prefixes")
    return (tuple(TEXTS.read(given, f"prefix_tokens in {path}", TokenizerError)),)


def _flag(merged: Mapping[str, Any], key: str, path: Path) -> bool | None:
    value = merged.get(key)
    return None if value is None else FLAG.read(value, f"{key} in {path}", TokenizerError)


def _padding_side(merged: Mapping[str, Any], path: Path) -> str:
    side = merged.get("padding_side") or "right"
    if side in ("left", "right"):
        return str(side)
    raise TokenizerError(f"padding_side in {path} is {side!r}", "it must be left or right")


def _extra_special(merged: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """Reads additional_special_tokens, a list (transformers 4), or extra_special_tokens, a list or object (5)."""
    found: dict[str, None] = {}
    for name in EXTRA_NAMES:
        values = merged.get(name) or []
        if not isinstance(values, (list, tuple, Mapping)):
            raise TokenizerError(f"{name} in {path} is {values!r}", "it must be a list of tokens")
        for value in values.values() if isinstance(values, Mapping) else values:
            text = token_text(value, name, path)
            if text:
                found[text] = None
    return tuple(found)


def _added_tokens(directory: Path, merged: Mapping[str, Any], path: Path) -> dict[int, AddedToken]:
    added: dict[int, AddedToken] = {}
    for content, token_id in read_json(directory / "added_tokens.json").items():
        name = f"the id of {shown(content)} in {directory / 'added_tokens.json'}"
        added[TOKEN_ID.read(token_id, name, TokenizerError)] = AddedToken(_content(content, directory))
    try:
        for key, value in (merged.get("added_tokens_decoder") or {}).items():
            token_id = int(key) if isinstance(key, str) and key.isdecimal() and len(key) < 20 else key
            token_id = TOKEN_ID.read(token_id, f"an id of added_tokens_decoder in {path}", TokenizerError)
            added[token_id] = _added_token(value, path)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        hint = "added_tokens_decoder maps an id to an object with content"
        raise TokenizerError(f"the added tokens of {path} cannot be read", hint) from error
    return added


def _content(value: Any, path: Path) -> str:
    return TOKEN_TEXT.read(value, f"a token of {path}", TokenizerError)


def _added_token(value: Mapping[str, Any], path: Path) -> AddedToken:
    def flag(name: str) -> bool:
        return bool(_flag(value, name, path))

    return AddedToken(
        _content(value["content"], path),
        special=flag("special"),
        lstrip=flag("lstrip"),
        rstrip=flag("rstrip"),
        normalized=flag("normalized"),
        single_word=flag("single_word"),
    )


def _chat_templates(directory: Path, given: Mapping[str, Any], merged: Mapping[str, Any], path: Path) -> dict[str, str]:
    """Returns templates by name.

    Order of precedence: settings, chat_template.jinja, tokenizer_config.json, chat_template.json.
    """
    if "chat_template" in given:
        return _named_templates(given["chat_template"], path)
    older = directory / "chat_template.json"
    value = merged.get("chat_template") or read_json(older).get("chat_template")
    return _named_templates(value, path) | _template_files(directory)


def _named_templates(value: Any, path: Path) -> dict[str, str]:
    """Reads one template, or a list of {name, template}."""
    if not value:
        return {}
    if isinstance(value, str):
        return {"default": value}
    try:
        named = f"a name or template of chat_template in {path}"
        pairs = [[TEXT.read(item[key], named, TokenizerError) for key in ("name", "template")] for item in value]
        return dict(pairs)
    except (KeyError, TypeError) as error:
        raise TokenizerError(f"chat_template in {path} is neither a text nor a list of {{name, template}}") from error


def _template_files(directory: Path) -> dict[str, str]:
    found = {}
    default = directory / "chat_template.jinja"
    for file in [default, *sorted((directory / "additional_chat_templates").glob("*.jinja"))]:
        if not file.is_file():
            continue
        try:
            found["default" if file == default else file.stem] = file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise TokenizerError(f"cannot read {file}: {error}") from error
    return found
