"""The server with OpenAI's own client: answers are those of `predict`, whole and streamed."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import openai
import pytest

from inference import LLM
from inference.config import load_config
from inference.generation.model import GenerativeModel

STORY = [{"role": "user", "content": "Tell me a story about a dog."}]


@pytest.fixture(scope="module")
def llm(model, tokenizer) -> LLM:
    return LLM(model, tokenizer)


@pytest.fixture(scope="module")
def client(served) -> Any:
    return served.client()


def one(llm: LLM, prompt: Any, **settings: Any) -> Any:
    return next(iter(llm.generate(prompt, **settings)))


class TestChat:
    @pytest.mark.parametrize(
        "settings",
        [
            {"max_tokens": 24},
            {"max_tokens": 24, "temperature": 1.3, "seed": 7, "top_p": 0.9},
            {"max_tokens": 24, "temperature": 1.0, "seed": 7, "frequency_penalty": 0.5, "presence_penalty": 0.3},
            {"max_tokens": 24, "stop": ["dog", "."]},
        ],
    )
    def test_answers_are_those_of_predict(self, client, llm, settings: dict[str, Any]) -> None:
        ours = {"max_new_tokens" if key == "max_tokens" else key: value for key, value in settings.items()}
        expected = one(llm, {"messages": STORY, **ours, **({"do_sample": True} if "temperature" in ours else {})})
        whole = client.chat.completions.create(model="demo", messages=STORY, **settings)
        assert whole.choices[0].message.content == expected.text
        assert whole.choices[0].finish_reason == expected.finish_reason
        assert whole.usage.prompt_tokens == expected.prompt_tokens
        assert whole.usage.completion_tokens == expected.completion_tokens
        stream = client.chat.completions.create(
            model="demo", messages=STORY, stream=True, stream_options={"include_usage": True}, **settings
        )
        chunks = list(stream)
        assert chunks[0].choices[0].delta.role == "assistant"
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
        assert text == expected.text
        assert chunks[-2].choices[0].finish_reason == expected.finish_reason
        assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage.model_copy(
            update={"prompt_tokens_details": chunks[-1].usage.prompt_tokens_details}
        )
        assert {chunk.id for chunk in chunks} == {chunks[0].id}

    def test_vllm_s_settings(self, client, llm) -> None:
        more = {"top_k": 5, "min_p": 0.05, "repetition_penalty": 1.2, "ignore_eos": True, "min_tokens": 4}
        answer = client.chat.completions.create(
            model="demo", messages=STORY, max_tokens=12, temperature=1, seed=3, extra_body=more
        )
        more["min_new_tokens"] = more.pop("min_tokens")
        ours = {"temperature": 1.0, "do_sample": True, "seed": 3, "max_new_tokens": 12, **more}
        assert answer.choices[0].message.content == one(llm, {"messages": STORY, **ours}).text

    def test_log_probabilities(self, client, llm) -> None:
        settings = {"messages": STORY, "max_tokens": 5, "logprobs": True, "top_logprobs": 3}
        whole = client.chat.completions.create(model="demo", **settings).choices[0]
        expected = one(llm, {"messages": STORY}, max_new_tokens=5, logprobs=3)
        assert [item.logprob for item in whole.logprobs.content] == [item.logprob for item in expected.logprobs]
        assert all(len(item.top_logprobs) == 3 for item in whole.logprobs.content)
        assert bytes(byte for item in whole.logprobs.content for byte in item.bytes).decode() == expected.text
        chunks = client.chat.completions.create(model="demo", stream=True, **settings)
        told = [chunk.choices[0].logprobs for chunk in chunks]
        assert [item for part in told if part for item in part.content] == whole.logprobs.content

    def test_integers_as_floats_and_harmless_keys(self, client) -> None:
        answer = client.chat.completions.create(
            model="demo", messages=STORY, max_completion_tokens=4, user="me", metadata={"a": "b"}, store=False, n=1
        )
        assert answer.usage.completion_tokens == 4


class TestCompletions:
    def test_texts_and_ids_side_by_side(self, client, llm, tokenizer) -> None:
        prompts = ["Once upon a time", "The cat"]
        answer = client.completions.create(model="demo", prompt=prompts, max_tokens=8)
        assert [choice.text for choice in answer.choices] == [one(llm, text, max_new_tokens=8).text for text in prompts]
        assert [choice.index for choice in answer.choices] == [0, 1]
        ids = [tokenizer.encode(text) for text in prompts]
        assert client.completions.create(model="demo", prompt=ids, max_tokens=8).choices == answer.choices
        single = client.completions.create(model="demo", prompt=ids[1], max_tokens=8)
        assert single.choices[0].text == answer.choices[1].text

    def test_a_stream_of_several(self, client) -> None:
        prompts = ["Once upon a time", "The cat"]
        whole = client.completions.create(model="demo", prompt=prompts, max_tokens=8)
        texts = ["", ""]
        for chunk in client.completions.create(model="demo", prompt=prompts, max_tokens=8, stream=True):
            texts[chunk.choices[0].index] += chunk.choices[0].text
        assert texts == [choice.text for choice in whole.choices]

    def test_echo(self, client) -> None:
        plain = client.completions.create(model="demo", prompt="Once upon", max_tokens=4).choices[0].text
        echoed = client.completions.create(model="demo", prompt="Once upon", max_tokens=4, echo=True).choices[0].text
        assert echoed == "Once upon" + plain

    def test_log_probabilities(self, client) -> None:
        answer = client.completions.create(model="demo", prompt="Once upon", max_tokens=4, logprobs=2).choices[0]
        found = answer.logprobs
        assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == 4
        assert "".join(found.tokens) == answer.text
        places = zip(found.text_offset, found.tokens, strict=True)
        assert all(answer.text[offset:].startswith(token) for offset, token in places)
        chunks = list(
            client.completions.create(model="demo", prompt="Once upon", max_tokens=4, logprobs=2, stream=True)
        )
        assert sum((chunk.choices[0].logprobs.token_logprobs for chunk in chunks), []) == found.token_logprobs
        assert sum((chunk.choices[0].logprobs.text_offset for chunk in chunks), []) == found.text_offset

    def test_logit_bias(self, client, tokenizer) -> None:
        """The client's keys are token ids as text; a bias of 100 decides, and one of -100 forbids."""
        settings = {"model": "demo", "prompt": "Once upon", "max_tokens": 4}
        forced = tokenizer.encode("dog", add_special_tokens=False)[-1]
        answer = client.completions.create(logit_bias={str(forced): 100}, logprobs=0, **settings).choices[0]
        assert answer.logprobs.tokens == [tokenizer.token_bytes(forced).decode()] * 4
        (first,) = tokenizer.encode(client.completions.create(**{**settings, "max_tokens": 1}).choices[0].text)[-1:]
        other = client.completions.create(logit_bias={str(first): -100}, **settings).choices[0]
        assert first not in tokenizer.encode(other.text)
        with pytest.raises(openai.BadRequestError, match="logit_bias"):
            client.completions.create(logit_bias={"dog": 1}, **settings)


def test_adapters_by_model_name(serve, tokenizer, graph_mode) -> None:
    """Each adapter is a model of its own to clients; rows of several run in one batch."""
    names = ("llama_patterns", "llama_rslora")
    goldens = Path(__file__).parents[1] / "goldens"
    adapters = {name: str(goldens / "lora" / name) for name in names}
    config = load_config({"load_checkpoint": str(goldens / "llama2_gqa"), "adapters": adapters})
    cases = {"llama2_gqa": "llama2_gqa", **{name: f"lora/{name}" for name in names}}
    with serve(other=GenerativeModel.from_config(config, say=print)) as served:
        client = served.client()
        cards = {card.id: card.parent for card in client.models.list()}
        base = next(name for name in cards if name not in names)
        assert cards == {base: None, **dict.fromkeys(names, base)}

        def ask(case: str) -> tuple[str, str]:
            golden = np.load(goldens / cases[case] / "golden.npz")
            prompt, expected = golden["prompt_2"].tolist(), golden["greedy_2"].tolist()[:16]
            answer = client.completions.create(
                model=case if case in names else base, prompt=prompt, max_tokens=16, extra_body={"ignore_eos": True}
            )
            assert answer.model == (case if case in names else base)
            return answer.choices[0].text, tokenizer.decode(prompt + expected)[len(tokenizer.decode(prompt)) :]

        with ThreadPoolExecutor(6) as threads:
            for found, expected in threads.map(ask, [*cases, *cases]):
                assert found == expected
        vectors = [client.embeddings.create(model=name, input=[5, 6, 7]).data[0].embedding for name in cards]
        assert len({tuple(vector) for vector in vectors}) == 3


class TestErrors:
    @pytest.mark.parametrize(
        ("body", "message"),
        [
            ({"temperatur": 1}, "did you mean 'temperature'"),
            ({"temperature": "hot"}, "temperature must be a number"),
            ({"temperature": -1}, "temperature must be at least 0"),
            ({"max_tokens": 0}, "must be at least 1"),
            ({"n": 0}, "n must be from 1"),
            ({"n": 1.5}, "n must be an integer"),
            ({"stream": "yes"}, "stream must be true or false"),
            ({"messages": []}, "messages"),
            ({"messages": [{"content": "no role"}]}, "role"),
            ({"messages": [{"role": "wizard", "content": "x"}]}, "role"),
            ({"messages": [{"role": "user", "content": "word " * 600}]}, "at most"),
        ],
    )
    def test_a_mistake_is_named(self, client, body: dict[str, Any], message: str) -> None:
        with pytest.raises(openai.BadRequestError, match=message) as caught:
            client.chat.completions.create(**{"model": "demo", "messages": STORY}, extra_body=body)
        assert caught.value.body["type"] == "invalid_request_error"

    def test_an_unknown_model(self, client) -> None:
        with pytest.raises(openai.NotFoundError, match="did you mean 'demo'"):
            client.chat.completions.create(model="dmo", messages=STORY)

    def test_a_stream_that_cannot_start_has_a_status(self, client) -> None:
        with pytest.raises(openai.BadRequestError, match="at most"):
            client.completions.create(model="demo", prompt="word " * 600, stream=True)


def test_models(client) -> None:
    cards = client.models.list().data
    assert [card.id for card in cards] == ["demo"]
    assert client.models.retrieve("demo").id == "demo"


def test_tokens_round_trip(served, tokenizer) -> None:
    found = served.post("/tokenize", {"prompt": "Once upon a time", "return_token_strs": True}).json()
    assert found["tokens"] == tokenizer.encode("Once upon a time")
    assert found["count"] == len(found["tokens"]) == len(found["token_strs"])
    plain = served.post("/tokenize", {"prompt": "Once upon a time", "add_special_tokens": False}).json()
    assert served.post("/detokenize", {"tokens": plain["tokens"]}).json() == {"prompt": "Once upon a time"}
    chat = served.post("/tokenize", {"messages": STORY}).json()
    assert chat["tokens"] == tokenizer.encode(
        tokenizer.apply_chat_template(STORY, tokenize=False), add_special_tokens=False
    )
    assert served.post("/detokenize", {"tokens": [10**9]}).status_code == 400


class TestForms:
    SCHEMA: dict[str, Any] = {  # noqa: RUF012
        "type": "object",
        "properties": {"name": {"enum": ["Rex", "Bello"]}, "age": {"type": "integer", "minimum": 0, "maximum": 30}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }

    @pytest.mark.parametrize("temperature", [0, 2])
    def test_a_json_schema(self, client, temperature: float) -> None:
        form = {"type": "json_schema", "json_schema": {"name": "dog", "schema": self.SCHEMA}}
        settings = {"messages": STORY, "max_tokens": 200, "temperature": temperature, "seed": 1}
        answer = client.chat.completions.create(model="demo", response_format=form, n=3, **settings)
        for choice in answer.choices:
            assert choice.finish_reason == "stop"
            jsonschema.validate(json.loads(choice.message.content), self.SCHEMA)

    def test_beside_others_and_to_the_token(self, client, llm) -> None:
        """Rows with and without a form share a batch; all are as they are alone."""
        prompts = ["Once upon a time", "The cat"]
        rows: list[Any] = [{"prompt": prompt, "structured_outputs": {"regex": "[a-f ]{12}"}} for prompt in prompts]
        texts = [completion.text for completion in llm.generate([*rows, *prompts], max_new_tokens=30)]
        assert texts == [one(llm, row, max_new_tokens=30).text for row in [*rows, *prompts]]
        assert all(re.fullmatch("[a-f ]{12}", text) for text in texts[:2])
        more = {"structured_outputs": {"regex": "[a-f ]{12}"}}
        assert (
            client.completions.create(model="demo", prompt=prompts[0], max_tokens=30, extra_body=more).choices[0].text
            == texts[0]
        )

    def test_an_impossible_form(self, client) -> None:
        with pytest.raises(openai.BadRequestError, match="cannot be compiled"):
            client.completions.create(model="demo", prompt="a", extra_body={"structured_outputs": {"regex": "("}})

    def test_several_samples(self, client, llm) -> None:
        answer = client.completions.create(model="demo", prompt="Once", n=3, temperature=1.5, seed=4, max_tokens=8)
        expected = one(llm, "Once", n=3, temperature=1.5, seed=4, max_new_tokens=8)
        assert [choice.text for choice in answer.choices] == [sample.text for sample in expected.samples]
        assert len({choice.text for choice in answer.choices}) == 3 and answer.usage.prompt_tokens < 6
