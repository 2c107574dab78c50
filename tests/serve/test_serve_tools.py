"""Tools and reasoning in chat answers, with OpenAI's own client: whole, streamed, and held by a grammar."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jsonschema
import openai
import pytest

from inference import LLM
from inference.generation.text import Encoder
from inference.structured.structure import grammar_of
from inference.structured.vocabulary import vocabulary_of

ASK = [{"role": "user", "content": "What is the weather in Rome?"}]
PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"$ref": "#/$defs/Days"}},
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"Days": {"type": "integer", "minimum": 1, "maximum": 9}},
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "clock", "description": "Tells the time."}},
]
CALL = '{"name": "weather", "arguments": {"city": "Rome", "days": 2}}'
HERMES = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if tools %}<tool_call>{% endif %}"

# The description of the tools that the demo's own template needs would leave too little room for eight calls.
SHORT = {"chat_template_kwargs": {"chat_template": HERMES}}


@pytest.fixture(scope="module")
def client(served: Any) -> Any:
    return served.client()


@pytest.fixture
def model_says(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes the model say a text, token by token, to every prompt."""

    def say(text: str) -> None:
        def constraint(encoder: Encoder, generation: Any) -> Any:
            vocabulary = vocabulary_of(encoder.tokenizer, encoder.vocab_size, generation.eos_token_id)
            return vocabulary.compile(grammar_of("choice", [text]))

        monkeypatch.setattr(Encoder, "_constraint", constraint)

    return say


def streamed(client: Any, **settings: Any) -> tuple[dict[str, Any], str, int]:
    """The message of a stream as a client adds it up, its finish reason, and the number of chunks with text."""
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "calls": []}
    reason, count = "", 0
    for chunk in client.chat.completions.create(model="demo", stream=True, **settings):
        (choice,) = chunk.choices
        reason = choice.finish_reason or reason
        delta = choice.delta
        for key in ("content", "reasoning_content"):
            message[key] += getattr(delta, key, None) or ""
        count += bool(delta.content or getattr(delta, "reasoning_content", None))
        for change in delta.tool_calls or ():
            if change.index == len(message["calls"]):
                assert change.id and change.type == "function"
                message["calls"].append([change.function.name, ""])
            message["calls"][change.index][1] += change.function.arguments or ""
    return message, reason, count


def calls_of(message: Any) -> list[tuple[str, Any]]:
    return [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or ()]


class TestRequiredCalls:
    @pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
    @pytest.mark.parametrize("temperature", [0, 2])
    def test_a_grammar_holds_them(self, client: Any, choice: Any, temperature: float) -> None:
        settings = {"messages": ASK, "tools": TOOLS, "tool_choice": choice, "max_tokens": 300, "seed": 2}
        settings["extra_body"] = SHORT
        answer = client.chat.completions.create(model="demo", temperature=temperature, **settings).choices[0]
        assert answer.finish_reason == "tool_calls" and answer.message.content is None
        found = calls_of(answer.message)
        assert found and all(name in ("weather", "clock") for name, _ in found)
        for name, arguments in found:
            jsonschema.validate(arguments, PARAMETERS if name == "weather" else {"const": {}})
        if isinstance(choice, dict):
            assert [name for name, _ in found] == ["weather"]
        message, reason, _ = streamed(client, temperature=temperature, **settings)
        assert reason == "tool_calls" and message["content"] == ""
        assert [(name, json.loads(text)) for name, text in message["calls"]] == found

    def test_one_call_if_requested(self, client: Any) -> None:
        settings = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}
        answer = client.chat.completions.create(
            model="demo", messages=ASK, max_tokens=300, temperature=2, seed=5, extra_body=SHORT, **settings
        )
        assert len(calls_of(answer.choices[0].message)) == 1

    def test_in_a_row_of_a_file(self, model: Any, tokenizer: Any) -> None:
        """The row has the record's own fields, and the same answer every time."""
        row = {"custom_id": "a", "url": "/v1/chat/completions", "method": "POST"}
        body = {"messages": ASK, "tools": TOOLS, "tool_choice": "required", "max_tokens": 300, **SHORT}
        llm = LLM(model, tokenizer)
        first, second = (next(iter(llm.generate([{**row, "body": body}]))) for _ in range(2))
        assert first.finish_reason == "tool_calls" and first.text == "" and first.tool_calls
        assert first.as_dict()["tool_calls"] == second.as_dict()["tool_calls"]


class TestCallsOfTheModel:
    @pytest.mark.parametrize("template", [None, HERMES])
    def test_whole_and_streamed(self, client: Any, model_says: Any, template: str | None) -> None:
        """The demo's template takes no tools, so they are described in the system message, and calls are JSON."""
        model_says(f"I look.\n<tool_call>\n{CALL}\n</tool_call>" if template else CALL)
        more = {"extra_body": {"chat_template_kwargs": {"chat_template": template}}} if template else {}
        settings = {"messages": ASK, "tools": TOOLS, "max_tokens": 100, **more}
        answer = client.chat.completions.create(model="demo", **settings).choices[0]
        assert answer.finish_reason == "tool_calls" and answer.message.content == ("I look.\n" if template else None)
        assert calls_of(answer.message) == [("weather", {"city": "Rome", "days": 2})]
        message, reason, _ = streamed(client, **settings)
        assert reason == "tool_calls" and message["content"] == (answer.message.content or "")
        assert message["calls"] == [["weather", answer.message.tool_calls[0].function.arguments]]

    def test_the_model_may_answer_in_text(self, client: Any) -> None:
        answer = client.chat.completions.create(model="demo", messages=ASK, tools=TOOLS, max_tokens=20).choices[0]
        assert answer.message.tool_calls is None and answer.message.content

    def test_no_call_if_none_is_allowed(self, client: Any, model_says: Any) -> None:
        model_says(CALL)
        answer = client.chat.completions.create(model="demo", messages=ASK, tools=TOOLS, tool_choice="none")
        assert answer.choices[0].message.content == CALL

    def test_the_result_is_sent_back(self, served: Any, client: Any, model_says: Any) -> None:
        """A call and its result are messages of the next turn, as the template writes them."""
        template = "{% for m in messages %}{{ m.role }}={{ m.content or m.tool_calls[0].function.arguments.city }};"
        template += "{% endfor %}{{ tools | length }}"
        model_says(CALL)
        message = client.chat.completions.create(model="demo", messages=ASK, tools=TOOLS).choices[0].message
        result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sun"}
        messages = [*ASK, message.model_dump(exclude_none=True), result]
        body = {"messages": messages, "tools": TOOLS, "chat_template_kwargs": {"chat_template": template}}
        found = served.post("/tokenize", body).json()
        assert "tokens" in found, found
        ids = found["tokens"]
        text = served.post("/detokenize", {"tokens": ids}).json()["prompt"]
        assert text == f"user={ASK[0]['content']};assistant=Rome;tool=sun;2"


class TestReasoning:
    @pytest.mark.parametrize("opened", [False, True])
    def test_whole_and_streamed(self, client: Any, model_says: Any, opened: bool) -> None:
        model_says(("" if opened else "<think>") + "\nIt is late.\n</think>\n\nGood night.")
        more = {"chat_template_kwargs": {"chat_template": "{{ messages[0].content }}<think>\n"}} if opened else {}
        settings = {"messages": ASK, "max_tokens": 60, "extra_body": more}
        message = client.chat.completions.create(model="demo", **settings).choices[0].message
        assert message.content == "Good night." and message.reasoning_content == "It is late."
        added, reason, count = streamed(client, **settings)
        assert added == {"content": "Good night.", "reasoning_content": "It is late.", "calls": []}
        assert reason == "stop" and count >= 2

    def test_before_a_call(self, client: Any, model_says: Any) -> None:
        model_says(f"<think>\nHm.\n</think>\n\n{CALL}")
        answer = client.chat.completions.create(model="demo", messages=ASK, tools=TOOLS, max_tokens=100).choices[0]
        assert answer.message.reasoning_content == "Hm." and answer.message.content is None
        assert answer.finish_reason == "tool_calls" and len(answer.message.tool_calls) == 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"tools": [{"type": "function"}]}, "tools must be a list"),
        ({"tools": TOOLS, "tool_choice": "always"}, "accepted: none, auto, required"),
        ({"tools": TOOLS, "tool_choice": {"function": {"name": "wether"}}}, "did you mean 'weather'"),
        ({"tool_choice": "required"}, "there are no tools"),
        ({"tools": TOOLS, "response_format": {"type": "json_object"}}, "exclude each other"),
        ({"tool_chioce": "auto"}, "did you mean 'tool_choice'"),
    ],
)
def test_a_mistake_is_named(client: Any, body: dict[str, Any], message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        client.chat.completions.create(model="demo", messages=ASK, extra_body=body)
