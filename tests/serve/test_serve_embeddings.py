"""`/v1/embeddings`, and the log probabilities of prompts: computed beside the running batch, and right."""

from __future__ import annotations

import threading
from collections.abc import Generator
from concurrent.futures import CancelledError
from typing import Any

import numpy as np
import openai
import pytest
from safetensors.numpy import load_file

from inference.errors import InputError
from inference.generation.passes import PassRow, embeddings, prompt_logprobs
from inference.generation.perplexity import Continuation, score_continuations
from inference.models.step import SequenceStep, StepBatch
from inference.models.weights.parameters import EMBEDDING, HEAD

TEXTS = ["Once upon a time", "The cat sat on the mat.", "A dog"]


@pytest.fixture(scope="module")
def client(served: Any) -> Any:
    return served.client()


def result_of(parts: Generator[None, None, Any]) -> Any:
    """Runs a generator to its end."""
    while True:
        try:
            next(parts)
        except StopIteration as end:
            return end.value


@pytest.fixture(scope="module")
def states(model: Any, tokenizer: Any) -> list[np.ndarray]:
    """The states of each text, computed alone."""
    tensors = load_file(model.source.directory / "model.safetensors")
    head = tensors[HEAD if HEAD in tensors else EMBEDDING].astype(np.float32)
    found = []
    with model.engine():
        model.runner.blocks.forget()
        for text in TEXTS:
            ids = tokenizer.encode(text)
            blocks = range(1, 2 + len(ids) // model.runner.block_size)
            batch = StepBatch.build([SequenceStep(ids, 0, blocks)], model.runner.block_size, True)
            found.append(model.runner.hidden_states(batch))
            # The head's matrix turns the right states into the logits.
            np.testing.assert_allclose(found[-1] @ head.T, model.runner.step(batch).logits, atol=2e-2)
    return found


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


class TestEmbeddings:
    @pytest.mark.parametrize("pooling", ["mean", "last"])
    def test_vectors(self, client: Any, states: list[np.ndarray], pooling: str) -> None:
        """The client asks for base64 unless told, and both forms are the same."""
        more = {"extra_body": {"pooling": pooling}}
        coded = client.embeddings.create(model="demo", input=TEXTS, **more)
        plain = client.embeddings.create(model="demo", input=TEXTS, encoding_format="float", **more)
        for index, own in enumerate(states):
            expected = unit(own.mean(axis=0) if pooling == "mean" else own[-1])
            np.testing.assert_allclose(plain.data[index].embedding, expected, atol=2e-4)
            np.testing.assert_allclose(coded.data[index].embedding, plain.data[index].embedding, atol=1e-6)
        assert plain.usage.prompt_tokens == plain.usage.total_tokens == sum(map(len, states))

    def test_ids_and_dimensions(self, client: Any, tokenizer: Any) -> None:
        whole = client.embeddings.create(model="demo", input=TEXTS[0]).data[0].embedding
        ids = tokenizer.encode(TEXTS[0])
        assert client.embeddings.create(model="demo", input=ids).data[0].embedding == whole
        short = client.embeddings.create(model="demo", input=[ids], dimensions=8).data[0].embedding
        np.testing.assert_allclose(short, unit(np.array(whole[:8])), atol=1e-6)

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            ({"input": ""}, "not empty"),
            ({"input": [[10**9]]}, "outside the vocabulary"),
            ({"input": "word " * 600}, "the model reads from 1 to 512"),
            ({"input": "a", "dimensions": 10**6}, "dimensions must be"),
            ({"input": "a", "encoding_format": "hex"}, "encoding_format must be one of float, base64"),
            ({"input": "a", "poling": "last"}, "did you mean 'pooling'"),
        ],
    )
    def test_a_mistake_is_named(self, served: Any, body: dict[str, Any], message: str) -> None:
        answer = served.post("/v1/embeddings", body)
        assert answer.status_code == 400 and message in answer.json()["error"]["message"]

    def test_beside_answers(self, served: Any, client: Any) -> None:
        """Neither disturbs the other, and the cache is free afterwards."""
        alone = client.embeddings.create(model="demo", input=TEXTS).data
        body = {"prompt": "Once upon a time", "max_tokens": 60, "ignore_eos": True}
        text = served.post("/v1/completions", body).json()["choices"][0]["text"]
        stream = client.completions.create(
            model="demo", prompt=body["prompt"], max_tokens=60, stream=True, extra_body={"ignore_eos": True}
        )
        pieces = [next(stream).choices[0].text]
        assert client.embeddings.create(model="demo", input=TEXTS).data == alone
        pieces += [chunk.choices[0].text for chunk in stream]
        assert "".join(pieces) == text
        pool = served.service.model.runner.blocks
        assert pool.num_free == pool.capacity


class TestPasses:
    def test_long_prompts_in_parts(self, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Prompts of several steps give what one step gives; blocks that others hold are waited for."""
        from inference.generation import passes

        rows = [PassRow(tuple(range(10, 10 + length))) for length in (40, 3, 7)]
        with model.engine():
            expected = result_of(embeddings(model.runner, rows, "mean"))
            monkeypatch.setattr(passes, "TOKENS_AT_ONCE", 8)
            pool, held = model.runner.blocks, []
            assert pool.grow(held, pool.num_free * pool.block_size)
            parts = embeddings(model.runner, rows, "mean")
            next(parts)
            assert pool.num_free == 0
            pool.release(held)
            np.testing.assert_allclose(result_of(parts), expected, atol=1e-5)
            assert pool.num_free == pool.capacity
            too_long = PassRow((1,) * (pool.capacity * pool.block_size + 1))
            with pytest.raises(InputError, match="does not fit into the KV cache"):
                result_of(embeddings(model.runner, [too_long], "mean"))

    def test_log_probabilities_are_those_of_perplexity(self, model: Any) -> None:
        rows = [PassRow(tuple(range(10, 10 + length))) for length in (40, 1, 7)]
        with model.engine():
            found = result_of(prompt_logprobs(model.runner, rows, 2, model.config.vocab_size))
            scores = score_continuations(model.runner, [Continuation(row.ids, 1) for row in (rows[0], rows[2])])
        assert [len(items) for items in found] == [39, 0, 6]
        sums = [-sum(item.logprob for item in items) for items in (found[0], found[2])]
        np.testing.assert_allclose(sums, [score.nats for score in scores], rtol=1e-4)
        assert all(len(item.top) == 2 for item in found[0])

    def test_work_that_is_cancelled_or_fails(self, model: Any) -> None:
        """It ends alone, and closes its generator."""
        ended, begun = [], threading.Event()

        def forever() -> Generator[None, None, None]:
            try:
                while True:
                    begun.set()
                    yield
            finally:
                ended.append(True)

        def failing() -> Generator[None, None, None]:
            yield
            raise InputError("a fault of the test")

        first, second = model.background.interleave(forever()), model.background.interleave(failing())
        assert begun.wait(20)
        first.cancel()
        with pytest.raises(InputError, match="a fault of the test"):
            second.result(20)
        with pytest.raises(CancelledError):
            first.result(20)
        assert ended == [True]


class TestPromptLogprobs:
    def test_requests_of_the_evaluation_harness(self, client: Any, model: Any, tokenizer: Any) -> None:
        ids = [tokenizer.encode(text) for text in TEXTS]
        settings = {"max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0, "seed": 1234}
        choices = client.completions.create(model="demo", prompt=ids, **settings).choices
        with model.engine():
            scores = score_continuations(model.runner, [Continuation(row, 1) for row in ids])
        for choice, row, score in zip(choices, ids, scores, strict=True):
            found = choice.logprobs
            assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == len(row) + 1
            assert found.token_logprobs[0] is None and found.top_logprobs[0] is None
            assert abs(-sum(found.token_logprobs[1:-1]) - score.nats) < 1e-3
            assert all(found.tokens[place] in found.top_logprobs[place] for place in range(1, len(row) + 1))

    def test_text_and_offsets(self, client: Any) -> None:
        choice = client.completions.create(model="demo", prompt=TEXTS[1], max_tokens=4, logprobs=0, echo=True).choices[
            0
        ]
        assert choice.text.startswith(TEXTS[1])
        places = list(zip(choice.logprobs.text_offset, choice.logprobs.tokens, strict=True))
        assert all(
            choice.text[offset:].startswith((token, token.lstrip())) for offset, token in places if token != "<s>"
        )
        chunks = client.completions.create(
            model="demo", prompt=TEXTS[1], max_tokens=4, logprobs=0, echo=True, stream=True
        )
        parts = [chunk.choices[0] for chunk in chunks]
        assert "".join(part.text for part in parts) == choice.text
        assert sum((part.logprobs.text_offset for part in parts if part.logprobs), []) == choice.logprobs.text_offset

    def test_the_prompt_alone(self, client: Any) -> None:
        choice = client.completions.create(model="demo", prompt=TEXTS[1], max_tokens=0, logprobs=1, echo=True).choices[
            0
        ]
        assert choice.text == TEXTS[1] and choice.finish_reason == "length"
        with pytest.raises(openai.BadRequestError, match="at least 1"):
            client.completions.create(model="demo", prompt=TEXTS[1], max_tokens=0)
