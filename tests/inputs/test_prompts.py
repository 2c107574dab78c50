"""What a row may say: a prompt, settings, OpenAI's spelling of both; every mistake begins with its place."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.errors import InputError
from inference.inputs.prompts import RowError, parse_row, prompt_of


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "f:1: not JSON"),
        ("[" * 100_000, "f:1: not JSON"),
        ('"text"', "f:1: a row must be an object, got str"),
        ("[1]", "f:1: a row must be an object, got list"),
        ("{}", "f:1: no prompt in this row"),
        ('{"prompt": null}', "f:1: no prompt in this row"),
        ('{"prompt": "a", "messages": []}', "f:1: both prompt and messages"),
        ('{"prompt": ""}', "f:1: the prompt is empty"),
        ('{"prompt": " \\n"}', "f:1: the prompt is empty"),
        ('{"prompt": []}', "f:1: the prompt is empty"),
        ('{"prompt": 3}', "f:1: prompt must be text or a list of token ids"),
        ('{"prompt": ["a"]}', "f:1: prompt must be text or a list of token ids"),
        ('{"prompt": [1, -1]}', "f:1: prompt must be text or a list of token ids"),
        ('{"prompt": [true]}', "f:1: prompt must be text or a list of token ids"),
        ('{"prompt": [1.0]}', "f:1: prompt must be text or a list of token ids"),
        ('{"messages": []}', "f:1: messages must be a list of objects"),
        ('{"messages": "hi"}', "f:1: messages must be a list of objects"),
        ('{"messages": [{"content": "hi"}]}', "f:1: messages must be a list of objects"),
        ('{"prompt": "a", "custom_id": [1]}', "f:1: custom_id must be text or a number"),
        ('{"prompt": "a", "custom_id": true}', "f:1: custom_id must be text or a number"),
        ('{"prompt": "a", "max_new_token": 3}', "f:1: unknown .*did you mean 'max_new_tokens'"),
        ('{"prompt": "a", "promt": "b"}', "f:1: unknown .*did you mean 'prompt'"),
        ('{"prompt": "a", "temperature": -1}', "f:1: .*temperature"),
        ('{"prompt": "a", "max_new_tokens": "many"}', "f:1: .*max_new_tokens"),
        ('{"prompt": "a", "num_beams": 4}', "f:1: .*num_beams"),
        ('{"prompt": "a", "self": 1}', "f:1: "),
    ],
)
def test_rows_that_make_no_sense(line: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse_row(line, "f:1", "0")
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)


@given(st.text() | st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists).map(json.dumps))
def test_any_line_is_a_row_or_an_input_error(line: str) -> None:
    try:
        prompt = parse_row(line, "f:1", "0")
    except InputError as error:
        assert str(error).startswith("f:1: ")
    else:
        assert sum(value is not None for value in (prompt.text, prompt.token_ids, prompt.messages)) == 1


CHAT = [{"role": "user", "content": "hi"}]


def openai(body: dict[str, Any], **keys: Any) -> str:
    """A row of OpenAI's batch format."""
    row = {"custom_id": "r1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(row | keys)


class TestOpenAI:
    def test_a_chat(self) -> None:
        body = {"model": "some", "messages": CHAT, "max_tokens": 7, "stop": ["x"], "seed": 3, "user": "me", "n": 1}
        prompt = parse_row(openai(body), "f:1", "0")
        assert (prompt.custom_id, prompt.messages) == ("r1", (CHAT[0],))
        assert prompt.settings == {"max_new_tokens": 7, "stop": ["x"], "seed": 3, "num_return_sequences": 1}

    def test_a_completion(self) -> None:
        for given_prompt, text, ids in (("Once", "Once", None), ([1, 2], None, (1, 2))):
            prompt = parse_row(openai({"prompt": given_prompt, "logprobs": 2}, url="/v1/completions"), "f:1", "0")
            assert (prompt.text, prompt.token_ids, prompt.settings) == (text, ids, {"logprobs": 2})

    @pytest.mark.parametrize(
        ("asked", "settings"),
        [
            ({"temperature": 0.5}, {"temperature": 0.5, "do_sample": True}),
            ({"top_p": 0.9}, {"top_p": 0.9, "do_sample": True}),
            ({"temperature": 0}, {"temperature": 0}),
            ({"temperature": None}, {}),
            ({"max_completion_tokens": 9}, {"max_new_tokens": 9}),
            ({"logprobs": True, "top_logprobs": 4}, {"logprobs": 4}),
            ({"logprobs": True}, {"logprobs": 0}),
            ({"logprobs": False}, {}),
            ({"stream": False}, {}),
        ],
    )
    def test_settings(self, asked: dict[str, Any], settings: dict[str, Any]) -> None:
        assert parse_row(openai({"messages": CHAT, **asked}), "f:1", "0").settings == settings

    def test_parts_of_text_are_left_to_the_chat_template(self) -> None:
        content = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
        prompt = parse_row(openai({"messages": [{"role": "user", "content": content}]}), "f:1", "0")
        assert prompt.messages == ({"role": "user", "content": content},)

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            (openai({"messages": CHAT}, url="/v1/embeddings"), "POST /v1/embeddings cannot be answered"),
            (openai({"messages": CHAT}, method="GET"), "GET /v1/chat/completions cannot be answered"),
            (openai({"messages": CHAT, "stream": True}), "cannot be streamed"),
            (openai({"messages": CHAT, "n": 0}), "num_return_sequences"),
            (openai({"messages": CHAT, "functions": []}), "unknown generation setting 'functions'"),
            (openai({"messages": CHAT}, temperature=1), "unknown key 'temperature' beside body"),
            (openai({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}), "a part that is no text"),
            (openai({}), "no prompt in this row"),
            ('{"custom_id": "r1", "body": 3}', "body must be an object, got int"),
        ],
    )
    def test_rows_that_cannot_be_answered(self, line: str, message: str) -> None:
        with pytest.raises(RowError, match=f"^f:1: .*{message}") as caught:
            parse_row(line, "f:1", "0")
        assert caught.value.custom_id == "r1"


def test_a_bad_row_keeps_its_name_where_it_has_one() -> None:
    for line, name in (('{"custom_id": 7}', "7"), ("{}", "12"), ("{", None), ('{"custom_id": []}', None)):
        with pytest.raises(RowError) as caught:
            parse_row(line, "f:1", "12")
        assert caught.value.custom_id == name


def test_prompts_of_tables() -> None:
    assert prompt_of("a", "t:2", "x").text == "a"
    assert prompt_of([1, 2], "t:2", "x").token_ids == (1, 2)
    for value in (None, "", 3, ["a"]):
        with pytest.raises(RowError, match="^t:2: ") as caught:
            prompt_of(value, "t:2", "x")
        assert caught.value.custom_id == "x"
