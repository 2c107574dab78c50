"""Other clients, unmodified: LangChain's ChatOpenAI, and this project's own client of remote models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from inference.generation.perplexity import Continuation, score_continuations
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


def test_the_evaluation_harness(served: Any, model: Any, tokenizer: Any) -> None:
    """lm-eval's `local-completions`: likelihoods and generated texts, with the server's own tokenizer."""
    completions = pytest.importorskip("lm_eval.models.openai_completions")
    instance = pytest.importorskip("lm_eval.api.instance").Instance
    harness = completions.LocalCompletionsAPI(
        base_url=f"{served.url}/v1/completions", model="demo", batch_size=2, max_length=512, max_gen_toks=8
    )
    assert harness.tokenizer_backend == "remote"
    pairs = [("Once upon", " a time"), ("The cat", " sat on the mat."), ("The cat", " xyz")]
    found = harness.loglikelihood(
        [instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)], disable_tqdm=True
    )
    rows = [harness._encode_pair(*pair) for pair in pairs]
    with model.engine():
        scores = score_continuations(model.runner, [Continuation(head + tail, len(head)) for head, tail in rows])
    np.testing.assert_allclose([value for value, _ in found], [-score.nats for score in scores], rtol=1e-3)
    assert found[0][1] in (True, False) and not found[2][1]
    (text,) = harness.generate_until(
        [instance("generate_until", {}, ("Once upon a time", {"until": ["."], "max_gen_toks": 8}), 0)],
        disable_tqdm=True,
    )
    body = {"prompt": tokenizer.encode("Once upon a time", add_special_tokens=False), "max_tokens": 8, "stop": ["."]}
    assert text == served.post("/v1/completions", body).json()["choices"][0]["text"]
