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
def test_invalid_rows(line: str, message: str) -> None:
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
TOOLS = [{"type": "function", "function": {"name": "clock"}}]


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
            ({"max_tokens": 5.0, "seed": 3.0, "temperature": 0.0}, {"max_new_tokens": 5, "seed": 3, "temperature": 0}),
            ({"response_format": {"type": "text"}}, {}),
            ({"response_format": {"type": "json_object"}}, {"response_format": {"type": "json_object"}}),
            ({"tools": [], "tool_choice": "none"}, {}),
            ({"tools": [{"type": "function"}], "tool_choice": "none"}, {}),
            ({"tools": [], "tool_choice": "auto", "parallel_tool_calls": True}, {}),
            ({"logit_bias": {}, "echo": False, "best_of": 1, "suffix": "", "modalities": ["text"]}, {}),
            ({"user": "me", "metadata": {"a": "b"}, "store": True, "stream_options": {"include_usage": True}}, {}),
        ],
    )
    def test_settings(self, asked: dict[str, Any], settings: dict[str, Any]) -> None:
        assert parse_row(openai({"messages": CHAT, **asked}), "f:1", "0").settings == settings

    def test_tools(self) -> None:
        auto = parse_row(openai({"messages": CHAT, "tools": TOOLS, "parallel_tool_calls": False}), "f:1", "0")
        assert auto.chat == {"tools": TOOLS} and auto.settings == {}
        assert auto.tools is not None and not auto.tools.must and not auto.tools.parallel
        must = parse_row(openai({"messages": CHAT, "tools": TOOLS, "tool_choice": "required"}), "f:1", "0")
        assert must.tools is not None and must.settings == {"structured_outputs": {"json": must.tools.schema()}}

    def test_a_conversation_with_tools(self) -> None:
        call = {"id": "c1", "type": "function", "function": {"name": "sum", "arguments": '{"a": 1}'}}
        messages = [
            {"role": "developer", "content": "Be brief.", "name": "boss"},
            {"role": "user", "content": "1 + 1?"},
            {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None},
            {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "2"}]},
        ]
        found = parse_row(openai({"messages": messages}), "f:1", "0").messages
        assert found is not None
        assert found[0] == {**messages[0], "role": "system"} and found[1] == messages[1]
        parsed = {"name": "sum", "arguments": {"a": 1}}
        assert found[2] == {"role": "assistant", "content": "", "tool_calls": [{**call, "function": parsed}]}
        assert found[3] == {"role": "tool", "tool_call_id": "c1", "content": "2"}

    @pytest.mark.parametrize("arguments", ["", "{", "3", "[" * 100_000])
    def test_arguments_that_are_not_an_object_stay_text(self, arguments: str) -> None:
        call = {"function": {"name": "f", "arguments": arguments}}
        line = openai({"messages": [*CHAT, {"role": "assistant", "content": None, "tool_calls": [call]}]})
        assert parse_row(line, "f:1", "0").messages[1]["tool_calls"] == [call]

    def test_parts_of_text_are_joined(self) -> None:
        content = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
        prompt = parse_row(openai({"messages": [{"role": "user", "content": content}]}), "f:1", "0")
        assert prompt.messages == ({"role": "user", "content": "ab"},)

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            (openai({"messages": CHAT}, url="/v1/embeddings"), "POST /v1/embeddings cannot be answered"),
            (openai({"messages": CHAT}, method="GET"), "GET /v1/chat/completions cannot be answered"),
            (openai({"messages": CHAT, "stream": True}), "cannot be streamed"),
            (openai({"messages": CHAT, "n": 0}), "num_return_sequences"),
            (openai({"messages": CHAT, "tools": [{}]}), "tools must be a list"),
            (openai({"messages": CHAT, "tool_choice": "required"}), "requires a call, but there are no tools"),
            (openai({"prompt": "a", "tools": TOOLS}, url="/v1/completions"), "tools need messages"),
            (
                openai({"messages": CHAT, "tools": TOOLS, "response_format": {"type": "json_object"}}),
                "exclude each other",
            ),
            (openai({"messages": CHAT, "tools": TOOLS, "parallel_tool_calls": 3}), "must be true or false"),
            (openai({"messages": CHAT, "best_of": 2}), "'best_of' cannot be done .*accepted: 1"),
            (openai({"messages": CHAT, "echo": True}), "'echo' cannot be done"),
            (openai({"messages": CHAT, "suffix": "x"}), "'suffix' cannot be done"),
            (openai({"messages": CHAT, "modalities": ["text", "audio"]}), "'modalities' cannot be done"),
            (openai({"messages": CHAT, "reasoning_effort": "low"}), "unknown generation setting 'reasoning_effort'"),
            (openai({"messages": [{"role": "user", "content": None}]}), "message 1 has no content"),
            (
                openai({"messages": [{"role": "user", "content": 3}]}),
                "content must be text or a list of parts",
            ),
            (openai({"messages": [{"role": 3, "content": "a"}]}), "message 1: role must be text"),
            (openai({"messages": CHAT}, temperature=1), "unknown key 'temperature' beside body"),
            (openai({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}), "a part that is not text"),
            (openai({}), "no prompt in this row"),
            ('{"custom_id": "r1", "body": 3}', "body must be an object, got int"),
        ],
    )
    def test_rows_that_cannot_be_answered(self, line: str, message: str) -> None:
        with pytest.raises(RowError, match=f"^f:1: .*{message}") as caught:
            parse_row(line, "f:1", "0")
        assert caught.value.custom_id == "r1"


def test_a_bad_row_keeps_its_custom_id() -> None:
    for line, name in (('{"custom_id": 7}', "7"), ("{}", "12"), ("{", None), ('{"custom_id": []}', None)):
        with pytest.raises(RowError) as caught:
            parse_row(line, "f:1", "12")
        assert caught.value.custom_id == name


@pytest.mark.parametrize(
    ("written", "name"), [("null", "12"), ("NaN", "12"), ("7", "7"), ("7.0", "7"), ("7.5", "7.5"), ('"a"', "a")]
)
def test_names_as_pandas_writes_them(written: str, name: str) -> None:
    line = f'{{"custom_id": {written}, "prompt": "a", "seed": null, "max_new_tokens": 3.0}}'
    prompt = parse_row(line, "f:1", "12")
    assert (prompt.custom_id, prompt.settings) == (name, {"max_new_tokens": 3})


def test_prompts_of_tables() -> None:
    assert prompt_of("a", "t:2", "x").text == "a"
    assert prompt_of([1, 2], "t:2", "x").token_ids == (1, 2)
    for value in (None, "", 3, ["a"]):
        with pytest.raises(RowError, match="^t:2: ") as caught:
            prompt_of(value, "t:2", "x")
        assert caught.value.custom_id == "x"
