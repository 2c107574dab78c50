"""`/v1/responses` with OpenAI's own client: the answers of the chat, in another format."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

QUESTION = "Tell me a story about a dog."
TOOL: Any = {
    "type": "function",
    "name": "weather",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Rome", "Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


@pytest.fixture(scope="module")
def client(served: Any) -> Any:
    return served.client()


@pytest.mark.parametrize("given", [QUESTION, [{"role": "user", "content": [{"type": "input_text", "text": QUESTION}]}]])
def test_text(client: Any, given: Any) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    expected = client.chat.completions.create(model="demo", messages=messages, max_tokens=16)
    settings = {"model": "demo", "instructions": "Be brief.", "max_output_tokens": 16}
    whole = client.responses.create(input=given, **settings)
    assert whole.output_text == expected.choices[0].message.content
    assert whole.status == "incomplete" and whole.incomplete_details.reason == "max_output_tokens"
    assert whole.usage.output_tokens == 16 and whole.usage.input_tokens == expected.usage.prompt_tokens
    with client.responses.stream(input=given, **settings) as stream:
        events = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text and len(deltas) > 2
    assert events[0].type == "response.created" and events[-1].type == "response.incomplete"
    assert events[-1].response.output[0].content[0].text == whole.output_text


def test_a_form(client: Any) -> None:
    schema = {"type": "object", "properties": {"age": {"enum": [1, 2]}}, "required": ["age"]}
    form = {"type": "json_schema", "name": "dog", "schema": {**schema, "additionalProperties": False}}
    answer = client.responses.create(model="demo", input=QUESTION, text={"format": form})
    assert answer.status == "completed" and json.loads(answer.output_text)["age"] in (1, 2)


def test_a_call_and_its_result(client: Any) -> None:
    choice = {"type": "function", "name": "weather"}
    settings = {"model": "demo", "tools": [TOOL], "tool_choice": choice, "input": QUESTION}
    (call,) = client.responses.create(**settings).output
    assert call.type == "function_call" and json.loads(call.arguments)["city"] in ("Rome", "Oslo")
    events = list(client.responses.create(stream=True, **settings))
    (done,) = [event for event in events if event.type == "response.function_call_arguments.done"]
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert done.arguments == "".join(deltas) == call.arguments
    assert events[-1].type == "response.completed" and events[-1].response.output[0].name == "weather"
    template = "{% for m in messages %}{{ m.role }};{{ m.content }}{% endfor %}{% if tools %}{% endif %}"
    answer = client.responses.create(
        model="demo",
        input=[
            {"role": "user", "content": "Hi"},
            {"type": "function_call", "call_id": call.call_id, "name": "weather", "arguments": call.arguments},
            {"type": "function_call_output", "call_id": call.call_id, "output": "sun"},
        ],
        max_output_tokens=4,
        extra_body={"chat_template_kwargs": {"chat_template": template}},
    )
    assert answer.error is None and 1 <= answer.usage.output_tokens <= 4


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"previous_response_id": "resp_1"}, "responses are not stored"),
        ({"max_output_token": 4}, "did you mean 'max_output_tokens'"),
        ({"input": 5}, "input must be a list"),
        ({"input": [{"type": "computer_call"}]}, "accepted: message, function_call"),
        ({"tools": [{"type": "web_search"}]}, "accepted: function"),
        ({"text": {"format": {"type": "xml"}}}, "response_format has type 'xml'"),
        ({"truncation": "auto"}, "must be 'disabled'"),
    ],
)
def test_a_mistake_is_named(client: Any, body: dict[str, Any], message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        client.responses.create(model="demo", input="a", extra_body=body)
