"""An OpenAI-compatible endpoint on 127.0.0.1 that follows the prompt: answers, fails, throttles, stalls and lies.

A prompt consists of words: an act, a number of times, and any text. `fail 2 x` fails twice with status 500 and then
answers; a prompt without such an act is answered at once.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import urllib.request
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-secret-of-the-test"


class EndpointServer(ThreadingHTTPServer):
    """Counts its requests.

    Attributes:
        bodies: the bodies of all requests.
        times: the start time of each request, seconds.
        most_at_once: maximum number of concurrent requests.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.tries: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.connections = 0
        self.under_way = self.most_at_once = 0
        self.stopping = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def __enter__(self) -> EndpointServer:
        threading.Thread(target=self.serve_forever, daemon=True, kwargs={"poll_interval": 0.01}).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stopping.set()
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: EndpointServer

    def setup(self) -> None:
        super().setup()
        with self.server.lock:
            self.server.connections += 1

    def do_POST(self) -> None:  # noqa: N802
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
        with server.lock:
            server.bodies.append(body)
            server.times.append(time.monotonic())
            server.tries[str(prompt)] += 1
            server.under_way += 1
            server.most_at_once = max(server.most_at_once, server.under_way)
            attempt = server.tries[str(prompt)]
        try:
            if self.headers["Authorization"] != f"Bearer {KEY}":
                self.send(401, {"error": {"message": f"wrong key: {self.headers['Authorization']}"}})
                return
            act, _, rest = str(prompt).partition(" ")
            often = rest.partition(" ")[0]
            if often.isdecimal() and attempt <= int(often) and hasattr(self, f"do_{act}"):
                getattr(self, f"do_{act}")(body, prompt)
            else:
                self.answer(body, prompt)
        finally:
            with server.lock:
                server.under_way -= 1

    def answer(self, body: dict[str, Any], prompt: Any, **changes: Any) -> None:
        text = f"answer to {prompt}"
        choice = {"message": {"role": "assistant", "content": text}} if "messages" in body else {"text": text}
        usage = {"prompt_tokens": 3, "completion_tokens": 4}
        whole = {"model": "served", "choices": [{**choice, "finish_reason": "stop"}], "usage": usage}
        self.send(200, {**whole, **changes})

    def send(self, status: int, body: Any, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_fail(self, body: dict[str, Any], prompt: Any) -> None:
        self.send(500, b"Internal Server Error")

    def do_throttle(self, body: dict[str, Any], prompt: Any) -> None:
        self.send(429, {"error": {"message": "slow down"}}, Retry_After="1")

    def do_refuse(self, body: dict[str, Any], prompt: Any) -> None:
        self.send(400, {"error": {"message": f"no such thing; you sent {self.headers['Authorization']}"}})

    def do_move(self, body: dict[str, Any], prompt: Any) -> None:
        self.send(307, b"", Location="http://127.0.0.1:1/")

    def do_stall(self, body: dict[str, Any], prompt: Any) -> None:
        self.server.stopping.wait(20)

    def do_drip(self, body: dict[str, Any], prompt: Any) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while not self.server.stopping.wait(0.05):
                self.wfile.write(b" ")
        self.close_connection = True

    def do_dripheader(self, body: dict[str, Any], prompt: Any) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while not self.server.stopping.wait(0.05):
                self.wfile.write(b"x")
        self.close_connection = True

    def do_long(self, body: dict[str, Any], prompt: Any) -> None:
        """Rejects the request; its message has the key after the padding that the prompt requests."""
        padding = int(str(prompt).split()[2]) - len("padding ")
        self.send(400, {"error": {"message": "padding " + "." * padding + KEY + "." * 300}})

    def do_cut(self, body: dict[str, Any], prompt: Any) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b'{"choices": [')
        self.close_connection = True

    def do_cutchunk(self, body: dict[str, Any], prompt: Any) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"100\r\nhalf")
        self.close_connection = True

    def do_hangup(self, body: dict[str, Any], prompt: Any) -> None:
        self.close_connection = True

    def do_nojson(self, body: dict[str, Any], prompt: Any) -> None:
        self.send(200, b"<html>welcome</html>")

    def do_list(self, body: dict[str, Any], prompt: Any) -> None:
        self.send(200, [])

    def do_two(self, body: dict[str, Any], prompt: Any) -> None:
        self.answer(body, prompt, choices=[{"text": "a", "message": {"content": "a"}}] * 2)

    def do_none(self, body: dict[str, Any], prompt: Any) -> None:
        self.answer(body, prompt, choices=[])

    def do_empty(self, body: dict[str, Any], prompt: Any) -> None:
        self.answer(body, prompt, choices=[{"message": {"content": None}, "text": None}])

    def do_error(self, body: dict[str, Any], prompt: Any) -> None:
        self.send(200, {"error": {"message": "overloaded"}})

    def do_close(self, body: dict[str, Any], prompt: Any) -> None:
        """Answers, and closes the connection without announcing it."""
        self.answer(body, prompt)
        self.close_connection = True

    def do_wait(self, body: dict[str, Any], prompt: Any) -> None:
        time.sleep(0.05)
        self.answer(body, prompt)

    def log_message(self, *arguments: object) -> None:
        pass


class ProxyServer(ThreadingHTTPServer):
    """A proxy for plain HTTP that requires a user and a password.

    Attributes:
        seen: requests with a password: the header and the requested URL.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ProxyHandler)
        self.seen: list[tuple[str, str]] = []

    def __enter__(self) -> ProxyServer:
        threading.Thread(target=self.serve_forever, daemon=True, kwargs={"poll_interval": 0.01}).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()


class ProxyHandler(BaseHTTPRequestHandler):
    server: ProxyServer

    def do_POST(self) -> None:  # noqa: N802
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if "Proxy-Authorization" not in self.headers:
            self.send_response(407)
            self.end_headers()
            return
        self.server.seen.append((self.headers["Proxy-Authorization"], self.path))
        headers = {name: self.headers[name] for name in ("Authorization", "Content-Type")}
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(urllib.request.Request(self.path, body, headers)) as response:
            data = response.read()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        pass
