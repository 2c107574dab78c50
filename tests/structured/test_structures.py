"""Grammars on the vocabularies of the demo and the goldens: whatever is drawn from what they allow conforms."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from inference.errors import ConfigError, InputError
from inference.structured.structure import grammar_of, structure_of
from inference.structured.tools import read_tools
from inference.structured.vocabulary import Vocabulary
from inference.tokenizer import Tokenizer, load_tokenizer

ROOT = Path(__file__).parents[2]
# Sentencepiece with bytes, and byte-level BPE: tokens that end inside a character.
DIRECTORIES = {
    "sentencepiece": ROOT / "inference" / "demo",
    "byte_level": ROOT / "tests" / "goldens" / "tokenizers" / "llama3",
}


class Drawn:
    """Draws answers evenly from the tokens that a structure allows."""

    def __init__(self, directory: Path):
        self.tokenizer: Tokenizer = load_tokenizer(directory)
        end = self.tokenizer.eos_token_id
        assert end is not None
        self.end = end
        self.vocabulary = Vocabulary(self.tokenizer, max(self.tokenizer.vocab_size, end + 1), [end])

    def draw(self, kind: str, value: Any, seed: int, most: int = 400) -> str | None:
        """An answer; None if it was cut."""
        choose = random.Random(seed)
        constraint = self.vocabulary.compile(grammar_of(kind, value))()
        ids: list[int] = []
        for _ in range(most):
            allowed = np.flatnonzero(constraint.allowed())
            # The end is drawn as soon as it may come, so that the answers are short.
            token = self.end if self.end in allowed else int(choose.choice(allowed.tolist()))
            constraint.advance(token)
            if token == self.end:
                assert np.flatnonzero(constraint.allowed()).tolist() == [self.end]
                return b"".join(map(self.tokenizer.token_bytes, ids)).decode()
            ids.append(token)
        return None


@pytest.fixture(scope="module", params=DIRECTORIES)
def drawn(request: pytest.FixtureRequest) -> Drawn:
    return Drawn(DIRECTORIES[request.param])


SCHEMAS: list[Any] = [
    {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    {"enum": ["é", 5, None, {"x": [1]}]},
    {"const": "a\nb"},
    {"type": "integer", "minimum": -3, "maximum": 12},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    {"type": "string", "minLength": 2, "maxLength": 5},
    {"type": "string", "pattern": "^[a-z]{2,4}-[0-9]+$"},
    {"type": "string", "format": "date"},
    {"type": ["null", "boolean"]},
    {"anyOf": [{"type": "boolean"}, {"type": "array", "items": {"type": "null"}, "maxItems": 2}]},
    {"$ref": "#/$defs/t", "$defs": {"t": {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 3}}},
    {"type": "array", "prefixItems": [{"type": "boolean"}, {"const": 1}], "items": False, "minItems": 2},
    True,
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:60])
def test_json_conforms(drawn: Drawn, schema: Any) -> None:
    found = [drawn.draw("json", schema, seed) for seed in range(3)]
    whole = [json.loads(text) for text in found if text is not None]
    assert whole, "every answer was cut"
    for value in whole:
        jsonschema.validate(value, schema)


def random_schema(choose: random.Random, depth: int = 0) -> dict[str, Any]:
    """A schema of few kinds, nested."""
    kinds = ["integer", "boolean", "null", "string", "enum"] + ([] if depth > 2 else ["array", "object", "anyOf"] * 2)
    kind = choose.choice(kinds)
    if kind == "enum":
        return {"enum": choose.sample(["a", "bé", 1, 2.5, None, True, "🙂"], choose.randint(1, 4))}
    if kind == "anyOf":
        return {"anyOf": [random_schema(choose, depth + 1) for _ in range(2)]}
    if kind == "array":
        return {"type": "array", "items": random_schema(choose, depth + 1), "maxItems": choose.randint(0, 3)}
    if kind == "object":
        names = choose.sample(["x", "y z", "ä", "_"], choose.randint(0, 3))
        properties = {name: random_schema(choose, depth + 1) for name in names}
        required = [name for name in names if choose.random() < 0.5]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    bounds = {"integer": {"minimum": 0, "maximum": 999}, "string": {"maxLength": 4}}
    return {"type": kind, **bounds.get(kind, {})}


def test_two_hundred_random_schemas(drawn: Drawn) -> None:
    cut = 0
    for seed in range(200):
        schema = random_schema(random.Random(seed))
        text = drawn.draw("json", schema, seed)
        cut += text is None
        if text is not None:
            jsonschema.validate(json.loads(text), schema)
    assert cut < 60


def test_texts_of_other_forms(drawn: Drawn) -> None:
    for seed in range(5):
        assert drawn.draw("choice", ["yes", "no", "maybe 🙂", 'a "b"'], seed) in ("yes", "no", "maybe 🙂", 'a "b"')
        assert re.fullmatch(r"[a-c]{3}-[0-9]{1,3}", drawn.draw("regex", "^[a-c]{3}-[0-9]{1,3}$", seed) or "")
        assert re.fullmatch(r"x[0-9]{2}", drawn.draw("grammar", 'start: "x" NUM\nNUM: /[0-9]{2}/', seed) or "")
        assert re.fullmatch(r"a[0-9]é", drawn.draw("grammar", 'root ::= "a" [0-9] "é"', seed) or "")
    objects = [text for text in (drawn.draw("json_object", True, seed) for seed in range(9)) if text]
    assert objects and all(isinstance(json.loads(text), dict) for text in objects)


@pytest.mark.parametrize(
    ("structured", "response_format", "message"),
    [
        ({"json": {"type": 7}}, None, "cannot be compiled"),
        ({"json": "no-such-file.json"}, None, "no-such-file.json cannot be read: No such file or directory$"),
        ({"json": "{"}, None, "not JSON"),
        ({"json": 5}, None, "a JSON schema is an object"),
        ({"regex": "("}, None, "cannot be compiled"),
        ({"regex": ""}, None, "regex must be a text"),
        ({"grammar": "start: nothing"}, None, "cannot be compiled"),
        ({"choice": []}, None, "choice must be"),
        ({"choise": ["a"]}, None, "did you mean 'choice'"),
        ({"regex": "a", "choice": ["a"]}, None, "2 structures"),
        (None, {"type": "xml"}, "accepted: text, json_object, json_schema"),
        (None, {"type": "json_schema"}, "json_schema.schema"),
        ({"regex": "a"}, {"type": "json_object"}, "exclude each other"),
    ],
)
def test_invalid_input_is_rejected(drawn: Drawn, structured: Any, response_format: Any, message: str) -> None:
    with pytest.raises((InputError, ConfigError), match=message):
        grammar = structure_of(structured, response_format)
        assert grammar is not None
        drawn.vocabulary.compile(grammar)


def test_nothing_requested() -> None:
    assert structure_of(None, None) is structure_of({}, {"type": "text"}) is None


def test_compiled_once(drawn: Drawn, monkeypatch: pytest.MonkeyPatch) -> None:
    grammar = grammar_of("regex", "once[0-9]")
    first = drawn.vocabulary.compile(grammar)
    monkeypatch.setattr(drawn.vocabulary, "_matcher", None)
    second = drawn.vocabulary.compile(grammar)
    assert first() is not second()


def test_forced_tokens_are_allowed(drawn: Drawn) -> None:
    constraint = drawn.vocabulary.compile(grammar_of("choice", ["unmistakable"]))()
    ids = list(constraint.forced())
    for token in ids:
        assert constraint.allowed()[token]
        constraint.advance(token)
    text = b"".join(map(drawn.tokenizer.token_bytes, ids)).decode()
    assert text and "unmistakable".startswith(text)


TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}},
    {"type": "function", "function": {"name": "clock"}},
]


class TestTools:
    def test_choices(self) -> None:
        assert read_tools(None, None) is read_tools([], "none") is read_tools(TOOLS, "none") is None
        auto, required = read_tools(TOOLS, None), read_tools(TOOLS, "required")
        assert auto is not None and auto.schema() is None and auto.names == ["weather", "clock"]
        assert required is not None and required.schema()["type"] == "array"

    def test_a_forced_call(self, drawn: Drawn) -> None:
        tools = read_tools(TOOLS, {"type": "function", "function": {"name": "clock"}})
        assert tools is not None
        assert json.loads(drawn.draw("json", tools.schema(), 1) or "")["name"] == "clock"

    @pytest.mark.parametrize(
        ("tools", "choice", "message"),
        [
            ([], "required", "there are no tools"),
            ([{"type": "function"}], None, "tools must be a list"),
            ("x", None, "tools must be a list"),
            (TOOLS, "always", "accepted: none, auto, required"),
            (TOOLS, {"type": "function", "function": {"name": "wether"}}, "did you mean 'weather'"),
        ],
    )
    def test_invalid_input_is_rejected(self, tools: Any, choice: Any, message: str) -> None:
        with pytest.raises(InputError, match=message):
            read_tools(tools, choice)
