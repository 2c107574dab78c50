"""The demo model behind a server of this process, loaded once, and OpenAI's own client for it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from demo_model import demo_config

from inference.generation.model import GenerativeModel
from inference.serve.app import State
from inference.serve.listen import Key, listen
from inference.serve.run import HttpServer
from inference.serve.service import Service
from inference.tokenizer import Tokenizer

openai = pytest.importorskip("openai")
KEY = "sk-of-the-test"


@dataclass
class Served:
    """A running server."""

    url: str
    service: Service
    state: State
    http: HttpServer

    @property
    def port(self) -> int:
        return self.state.listener.port

    def client(self, key: str = "none") -> Any:
        """OpenAI's client, which tries once."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    def post(self, path: str, body: Any = None, **more: Any) -> httpx.Response:
        content = {} if body is None else {"json": body}
        return httpx.post(self.url + path, timeout=60, **content, **more)

    def get(self, path: str, **more: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=60, **more)

    def connect(self) -> socket.socket:
        """A plain connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)


Serve = Callable[..., Any]


@pytest.fixture(scope="session")
def serve(model: GenerativeModel, tokenizer: Tokenizer) -> Serve:
    """Runs a server with its own settings on the one model or another: `with serve(max_waiting=0) as served: ...`."""

    @contextmanager
    def run(key: str | None = None, other: GenerativeModel | None = None, **settings: Any) -> Iterator[Served]:
        used = other or model
        config = demo_config(serve={"port": 0, "shutdown_seconds": 2, **settings}, predict_batch_size=16)
        listener = listen(config)
        listener.key = Key(key) if key else None
        state = State(listener, config.serve.page)
        state.service = Service(config, used, tokenizer, used.encoder(tokenizer))
        http = HttpServer(state, config.serve.shutdown_seconds)
        http.start()
        try:
            yield Served(listener.url, state.service, state, http)
        finally:
            http.stop()

    return run


@pytest.fixture(scope="session")
def served(serve: Serve) -> Iterator[Served]:
    """A server that most tests share."""
    with serve() as running:
        yield running
