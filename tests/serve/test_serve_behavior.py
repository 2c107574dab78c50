"""The server under load and with clients that misbehave: nobody else notices, and each gets a proper answer."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

STORY = [{"role": "user", "content": "Tell me a story about a dog."}]
LONG = {"prompt": "Once upon a time", "max_tokens": 400, "ignore_eos": True}


def until(true: Callable[[], bool], seconds: float = 20) -> None:
    """Waits for a condition."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.005)


def running(served: Any) -> int:
    engine = served.service.model.background.engine
    return engine.num_running + engine.num_waiting if engine else 0


def request_bytes(body: Any, path: str = "/v1/completions") -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode() + data


def response_of(connection: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    parts = []
    while part := connection.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def test_two_hundred_clients_at_once(served) -> None:
    """Each has a length of its own, streamed or not, and gets what it gets alone."""
    lengths = [1 + index % 13 for index in range(200)]
    alone = {}
    for length in sorted(set(lengths)):
        body = {"prompt": "Once upon a time", "max_tokens": length, "ignore_eos": True}
        alone[length] = served.post("/v1/completions", body).json()["choices"][0]["text"]
    together = threading.Barrier(200, timeout=60)

    def ask(index: int) -> str:
        body = {
            "prompt": "Once upon a time",
            "max_tokens": lengths[index],
            "ignore_eos": True,
            "stream": index % 2 == 1,
        }
        with served.connect() as connection:
            together.wait()
            connection.sendall(request_bytes(body))
            head, _, data = response_of(connection).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), data
        if not body["stream"]:
            return str(json.loads(data)["choices"][0]["text"])
        lines = [line[6:] for line in data.split(b"\n") if line.startswith(b"data: {")]
        assert b"data: [DONE]" in data
        return "".join(json.loads(line)["choices"][0]["text"] for line in lines)

    with ThreadPoolExecutor(200) as threads:
        texts = list(threads.map(ask, range(200)))
    assert texts == [alone[length] for length in lengths]
    assert served.service.admission.open == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_disconnects_frees_its_row(served, stream: bool, capfd: pytest.CaptureFixture[str]) -> None:
    with served.connect() as connection:
        connection.sendall(request_bytes({**LONG, "stream": stream}))
        until(lambda: running(served) == 1)
    until(lambda: running(served) == 0, 3)
    until(lambda: served.service.admission.open == 0, 3)
    assert capfd.readouterr().err == ""


def test_a_half_closed_connection_does_not_affect_others(served) -> None:
    with served.connect() as connection:
        connection.sendall(request_bytes({**LONG, "max_tokens": 5}))
        connection.shutdown(socket.SHUT_WR)
        answer = response_of(connection)
    assert not answer or answer.startswith(b"HTTP/1.1 200")
    until(lambda: served.service.admission.open == 0, 5)


def test_a_slow_reader_does_not_stall_others(served) -> None:
    with served.connect() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        body = {"messages": STORY, "max_tokens": 100, "ignore_eos": True, "stream": True}
        # More than the buffers on the way hold: the connection stands still.
        body |= {"logprobs": True, "top_logprobs": 20}
        slow.sendall(request_bytes(body, "/v1/chat/completions"))
        until(lambda: running(served) == 1)
        started = time.monotonic()
        assert served.post("/v1/completions", {"prompt": "The cat", "max_tokens": 3}).status_code == 200
        assert time.monotonic() - started < 5
        until(lambda: running(served) == 0)
        assert slow.recv(1000).startswith(b"HTTP/1.1 200")
    until(lambda: served.service.admission.open == 0)


class TestTheQueue:
    def test_a_full_queue_reports_when_to_retry(self, serve) -> None:
        with serve(max_waiting=0) as served, ThreadPoolExecutor(16) as threads:
            places = served.service.admission._limit
            bodies = [{**LONG, "max_tokens": 50}] * places
            # Requests of clients could end before the last one has come, so the queue is filled by hand.
            with served.service.admission.enter(places):
                refused = served.post("/v1/completions", {"prompt": "a", "max_tokens": 1})
            answers = threads.map(lambda body: served.post("/v1/completions", body), bodies)
            assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
            assert refused.json()["error"]["type"] == "rate_limit_error"
            assert all(answer.status_code == 200 for answer in answers)
            assert served.post("/v1/completions", {"prompt": "a", "max_tokens": 1}).status_code == 200
            text = served.get("/metrics").text
            assert 'requests_refused_total{model_name="demo"} 1.0' in text
            assert 'http_requests_total{path="/v1/completions",status="429"} 1.0' in text

    def test_more_prompts_than_fit_at_once(self, serve) -> None:
        with serve(max_waiting=0) as served:
            body = {"prompt": ["a"] * 17, "max_tokens": 1}
            assert served.post("/v1/completions", body).json()["error"]["message"].startswith("a request of 17 prompts")


@pytest.fixture(scope="module")
def narrow(serve) -> Iterator[Any]:
    with serve(key="sk-secret", max_body=2000, max_tokens=8, max_prompts=2, body_seconds=0.3) as served:
        yield served


class TestLimits:
    AUTHORIZED: dict[str, str] = {"Authorization": "Bearer sk-secret"}  # noqa: RUF012

    def test_the_key(self, narrow) -> None:
        for headers in ({}, {"Authorization": "Bearer sk-secre"}, {"Authorization": "Basic sk-secret"}):
            answer = narrow.get("/v1/models", headers=headers)
            assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
            assert "sk-sec" not in answer.text
        assert narrow.get("/v1/models", headers=self.AUTHORIZED).status_code == 200
        assert narrow.get("/health").status_code == narrow.get("/ready").status_code == 200
        assert narrow.client("sk-secret").models.list().data

    def test_the_key_is_checked_before_the_body(self, narrow) -> None:
        assert narrow.post("/v1/completions", {"prompt": "a" * 9999}).status_code == 401

    def test_long_bodies(self, narrow) -> None:
        body = {"prompt": "a" * 3000}
        assert narrow.post("/v1/completions", body, headers=self.AUTHORIZED).status_code == 413

        def chunks() -> Iterator[bytes]:
            while True:
                yield b" " * 500

        headers = {**self.AUTHORIZED, "Content-Type": "application/json"}
        with httpx.Client() as client:
            try:
                answer = client.post(f"{narrow.url}/v1/completions", content=chunks(), headers=headers)
                assert answer.status_code == 413
            except httpx.TransportError:
                pass  # the connection was closed

    def test_a_body_that_never_arrives(self, narrow) -> None:
        with narrow.connect() as connection:
            data = request_bytes({"prompt": "a"}).replace(
                b"Host: localhost", b"Host: a\r\nAuthorization: Bearer sk-secret"
            )
            connection.sendall(data[:-3])
            assert response_of(connection).startswith(b"HTTP/1.1 408")

    def test_tokens_and_prompts(self, narrow) -> None:
        for body, name in (({"prompt": "a", "max_tokens": 9}, "max_tokens"), ({"prompt": ["a"] * 3}, "3 prompts")):
            answer = narrow.post("/v1/completions", body, headers=self.AUTHORIZED)
            assert answer.status_code == 400 and name in answer.json()["error"]["message"]


class TestWhoMayAsk:
    def test_a_page_of_another_host_is_rejected(self, served) -> None:
        answer = served.get("/v1/models", headers={"Host": "evil.example:80"})
        assert answer.status_code == 403 and "evil.example" in answer.json()["error"]["message"]
        for host in ("localhost:1", "127.0.0.1", "[::1]:8000"):
            assert served.get("/v1/models", headers={"Host": host}).status_code == 200

    def test_a_form_is_rejected(self, served) -> None:
        answer = httpx.post(f"{served.url}/v1/completions", data={"prompt": "x"})
        assert answer.status_code == 415

    def test_paths_and_methods(self, served) -> None:
        assert "did you mean '/v1/models'" in served.get("/v1/model").json()["error"]["message"]
        assert served.get("/v1/completions").status_code == 405


def test_figures(served) -> None:
    before = served.get("/metrics").text
    served.post("/v1/completions", {"prompt": "Once upon a time", "max_tokens": 3, "ignore_eos": True})
    after = served.get("/metrics").text

    def value(text: str, name: str) -> float:
        return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))

    for name, more in (
        ("vllm:generation_tokens_total", 3),
        ("vllm:request_success_total", 1),
        ("vllm:time_to_first_token_seconds_count", 1),
        ("vllm:request_time_per_output_token_seconds_count", 1),
    ):
        assert value(after, name) - value(before, name) == more, name
    assert value(after, "vllm:num_requests_running") == 0


def test_a_row_that_fails_fails_alone(served, monkeypatch) -> None:
    from inference.engine import engine

    take = engine.Engine._take_token

    def fail(self: Any, request: Any, *arguments: Any) -> None:
        if request.generation.seed == 666:
            raise ArithmeticError("a fault of the test")
        take(self, request, *arguments)

    monkeypatch.setattr(engine.Engine, "_take_token", fail)
    with ThreadPoolExecutor(2) as threads:
        bad = threads.submit(served.post, "/v1/completions", {"prompt": "a", "seed": 666})
        good = threads.submit(served.post, "/v1/completions", {"prompt": "a", "max_tokens": 5})
        assert good.result().status_code == 200
        answer = bad.result()
    assert answer.status_code == 500 and answer.json()["error"]["code"] == "model_failed"
    assert "Traceback" not in answer.text
