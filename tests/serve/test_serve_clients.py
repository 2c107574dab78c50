"""Other clients, unmodified: LangChain's ChatOpenAI, and this project's own client of remote models."""

from __future__ import annotations

from typing import Any

import pytest

from inference.inputs.prompts import Prompt
from inference.remote import Client, Endpoint, RemoteAnswer

QUESTION = "Tell me a story about a dog."


@pytest.fixture(scope="module")
def expected(served: Any) -> str:
    body = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 12}
    return str(served.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"])


def test_langchain(served: Any, expected: str) -> None:
    langchain_openai = pytest.importorskip("langchain_openai")
    chat = langchain_openai.ChatOpenAI(
        model="demo", base_url=f"{served.url}/v1", api_key="none", max_tokens=12, max_retries=0
    )
    assert chat.invoke(QUESTION).content == expected
    assert "".join(str(chunk.content) for chunk in chat.stream(QUESTION)) == expected


def test_our_own_client(served: Any, expected: str) -> None:
    client = Client(Endpoint(f"{served.url}/v1", "demo", key_variable=None))
    outcome = client.answer(Prompt("0", "row 0", text=QUESTION), {"max_new_tokens": 12})
    client.close()
    assert isinstance(outcome, RemoteAnswer), outcome
    assert outcome.reply.text == expected and outcome.reply.completion_tokens == 12


def test_echo_with_log_probabilities_is_refused(served: Any) -> None:
    answer = served.post("/v1/completions", {"prompt": "a", "echo": True, "logprobs": 1, "max_tokens": 1})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "echo"
