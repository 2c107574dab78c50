"""Converts the settings for structured output to a grammar for llguidance.

The settings are vLLM's `structured_outputs` (`json`, `json_object`, `regex`, `grammar`, `choice`) and OpenAI's
`response_format`. Knows these and their grammars; knows nothing about tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inference.errors import ConfigError, InputError, did_you_mean

KINDS = ("json", "json_object", "regex", "grammar", "choice")
FORMATS = ("text", "json_object", "json_schema")
# Allow indented JSON, but limit white space: a model that only adds white space would never finish.
WHITE_SPACE = r"[\x20\x0A\x09]{0,20}"
# Maximum length of a schema or grammar, in characters.
LONGEST = 1 << 20


def structure_of(structured_outputs: Mapping[str, Any] | None, response_format: Mapping[str, Any] | None) -> str | None:
    """Returns the grammar that either setting requests; None if neither does.

    Raises:
        InputError: a setting is invalid, or both are given.
    """
    asked = _from_format(response_format)
    if structured_outputs:
        if asked is not None:
            raise InputError("structured_outputs and response_format exclude each other", "give one of them")
        asked = _only(structured_outputs)
    return None if asked is None else grammar_of(*asked)


def grammar_of(kind: str, value: Any) -> str:
    """Returns the grammar of one kind of structure.

    Raises:
        InputError: the value is invalid for that kind.
        ConfigError: llguidance is not installed.
    """
    try:
        from llguidance import LLMatcher
    except ImportError:
        hint = "pip install 'mindspore-inference[structured]'"
        raise ConfigError("structured answers need llguidance", hint) from None

    if kind == "json":
        return _json_grammar(_schema(value))
    if kind == "json_object":
        return _json_grammar({"type": "object"})
    if kind == "choice":
        return LLMatcher.grammar_from_lark(_choice_grammar(value))
    if not isinstance(value, str) or not value or len(value) > LONGEST:
        raise InputError(f"{kind} must be a text of at most {LONGEST:,} characters")
    if kind == "regex":
        # Patterns always match the whole answer; llguidance does not support anchors.
        return LLMatcher.grammar_from_regex(value.removeprefix("^").removesuffix("$"))
    return _any_grammar(value)


def _from_format(value: Mapping[str, Any] | None) -> tuple[str, Any] | None:
    """Reads OpenAI's `response_format` as a kind and its value."""
    if value is None:
        return None
    kind = value.get("type") if isinstance(value, Mapping) else None
    if kind not in FORMATS:
        raise InputError(f"response_format has type {kind!r}", f"accepted: {', '.join(FORMATS)}")
    if kind == "text":
        return None
    if kind == "json_object":
        return "json_object", True
    schema = value.get("json_schema")
    if not isinstance(schema, Mapping) or not isinstance(schema.get("schema"), Mapping | bool):
        raise InputError("response_format of type json_schema needs json_schema.schema, a JSON schema")
    return "json", schema["schema"]


def _only(value: Any) -> tuple[str, Any]:
    """Reads the single kind in vLLM's `structured_outputs`, with its value."""
    if not isinstance(value, Mapping):
        raise InputError("structured_outputs must be a mapping", f"such as one with {KINDS[0]}")
    given = {key: item for key, item in value.items() if item is not None and item is not False}
    for key in given:
        if key not in KINDS:
            raise InputError(f"structured_outputs: unknown key '{key}'", did_you_mean(str(key), KINDS))
    if len(given) != 1:
        raise InputError(f"structured_outputs has {len(given)} structures", f"give one of {', '.join(KINDS)}")
    return next(iter(given.items()))


def _schema(value: Any) -> Any:
    """Reads a JSON schema given as an object, as text, or as the name of a .json file."""
    if isinstance(value, str):
        text = value
        if value.endswith(".json"):
            try:
                text = Path(value).read_text(encoding="utf-8")
            except OSError as error:
                raise ConfigError(f"the JSON schema {value} cannot be read: {error.strerror}") from None
            except UnicodeDecodeError:
                raise ConfigError(f"the JSON schema {value} is not UTF-8") from None
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"the JSON schema is not JSON ({error})") from None
    if not isinstance(value, (Mapping, bool)):
        raise InputError("a JSON schema is an object, true or false")
    return value


def _json_grammar(schema: Any) -> str:
    from llguidance import LLMatcher

    try:
        text = json.dumps(schema if isinstance(schema, Mapping) else {} if schema else {"not": {}})
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"the JSON schema is not JSON ({error})") from None
    if len(text) > LONGEST:
        raise InputError(f"the JSON schema has {len(text):,} characters", f"at most {LONGEST:,}")
    has_spacing = isinstance(schema, Mapping) and "x-guidance" in schema
    return LLMatcher.grammar_from_json_schema(
        text, overrides=None if has_spacing else {"whitespace_pattern": WHITE_SPACE}
    )


def _choice_grammar(value: Any) -> str:
    choices = list(value) if isinstance(value, (list, tuple)) else [value]
    if not choices or not all(isinstance(choice, str) and choice for choice in choices):
        raise InputError("choice must be a list of texts that are not empty")
    return "start: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)


def _any_grammar(text: str) -> str:
    """Reads a grammar in Lark's syntax or in llama.cpp's GBNF, recognized by its `::=`."""
    from llguidance import LLMatcher
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        return LLMatcher.grammar_from_lark(any_to_lark(text))
    except Exception as error:  # the text causes any error of the converter
        raise InputError(f"the grammar cannot be read ({error})") from None
