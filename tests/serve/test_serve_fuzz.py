"""Bodies that no client means: an answer in OpenAI's form or a closed connection, and nobody else is disturbed."""

from __future__ import annotations

import json
import random
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

COUNT = 1000
PATHS = ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize", "/v1/embeddings", "/v1/responses")
KEYS = (
    *("model", "messages", "prompt", "max_tokens", "temperature", "top_p", "top_k", "n", "stop", "seed", "stream"),
    *("stream_options", "logprobs", "top_logprobs", "logit_bias", "frequency_penalty", "min_p", "echo", "best_of"),
    *("tokens", "tools", "tool_choice", "response_format", "chat_template_kwargs", "input", "encoding_format"),
    *("structured_outputs", "ignore_eos", "user", "metadata", "adapter_id", "eos_token_id", "unknown", "", "__class__"),
)
VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2**31,
        2**64,
        -(2**70),
        0.5,
        1e308,
        -0.0,
        10**25,
        "",
        "x",
        "demo",
        "\x00",
        "é🙂\u202e",
    ),
    *([], {}, [[]], [{}], {"a": {"b": []}}, [1, 2], [1, "a"], [0, -1], [None], ["a", "b"], [5, 6], "a" * 3000),
    *(
        {"role": "user"},
        [{"role": "user", "content": "x"}],
        [{"role": "user", "content": None}],
        {"type": "json_object"},
    ),
    *([{"role": 5, "content": "x"}], [{"role": "user", "content": [{"type": "image_url"}]}], {"include_usage": "yes"}),
    *({"type": "json_schema", "json_schema": {"schema": {"type": 7}}}, [{"type": "function"}], {"1": 200}, {"x": "y"}),
)


def nested(draw: random.Random, depth: int = 0) -> Any:
    """Any JSON."""
    if depth > 3 or draw.random() < 0.6:
        return draw.choice(VALUES)
    if draw.random() < 0.5:
        return [nested(draw, depth + 1) for _ in range(draw.randrange(4))]
    return {draw.choice(KEYS): nested(draw, depth + 1) for _ in range(draw.randrange(4))}


def body_of(draw: random.Random) -> bytes:
    """A body that is wrong somewhere, mostly; an answer to one that is right is short."""
    kind = draw.random()
    if kind < 0.05:
        return b"[" * draw.choice((10, 5000, 200_000))
    if kind < 0.1:
        return draw.randbytes(draw.randrange(200))
    good: dict[str, Any] = {
        "prompt": "Once",
        "messages": [{"role": "user", "content": "x"}],
        "tokens": [5],
        "input": "a",
    }
    body = {key: value for key, value in good.items() if draw.random() < 0.5} | {"max_tokens": 2}
    for _ in range(draw.randrange(4)):
        body[draw.choice(KEYS)] = nested(draw)
    text = json.dumps(body, ensure_ascii=draw.random() < 0.5)
    if kind < 0.15:
        text = text.replace("1", "1" * 5000) if draw.random() < 0.5 else text[: draw.randrange(len(text))]
    if kind < 0.2:
        text = text.replace('"x"', '"\\ud800"').replace("0.5", draw.choice(("NaN", "-Infinity", "1e999")))
    if kind < 0.25:
        return text.encode(draw.choice(("utf-16", "utf-8-sig", "utf-32")))
    return text.encode()


def check(response: httpx.Response) -> None:
    """An answer, or an error in OpenAI's form without a traceback in it."""
    assert "Traceback" not in response.text and ".py" not in response.text
    if response.status_code != 200:
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["message"], response.text
        assert response.status_code != 500, response.text


def test_a_thousand_bodies(served, capsys: pytest.CaptureFixture[str]) -> None:
    beside = {"prompt": "Once upon a time", "max_tokens": 60, "ignore_eos": True}
    expected = served.post("/v1/completions", beside).json()["choices"]
    over = threading.Event()

    def neighbor() -> int:
        rounds = 0
        while not over.is_set() or not rounds:
            assert served.post("/v1/completions", beside).json()["choices"] == expected
            rounds += 1
        return rounds

    def worker(number: int) -> None:
        draw = random.Random(number)
        with httpx.Client(base_url=served.url, timeout=60, headers={"Content-Type": "application/json"}) as client:
            for _ in range(COUNT // 4):
                body, path = body_of(draw), draw.choice(PATHS)
                try:
                    check(client.post(path, content=body))
                except AssertionError as error:
                    raise AssertionError(f"{path}: {body[:1000]!r}: {error}") from error

    with ThreadPoolExecutor(5) as threads:
        along = threads.submit(neighbor)
        try:
            list(threads.map(worker, range(4)))
        finally:
            over.set()
        assert along.result() >= 1
    assert served.service.admission.open == 0
    assert "Traceback" not in capsys.readouterr().err


POST = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\r\n\r\n",
        b"GET",
        b"NONSENSE\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        POST + b"Content-Length: -5\r\n\r\n",
        POST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        POST + b"Content-Length: 90\r\n\r\n{",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_responses_that_are_not_http(served, data: bytes) -> None:
    with served.connect() as connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(1 << 16)
        except OSError:
            # The server has closed it before all was sent.
            answer = b""
    # A version that nobody has is answered as one that is known.
    assert not answer or answer.startswith(b"HTTP/1.1 4") or b"HTTP/9.9" in data
    assert served.get("/health").status_code == 200
