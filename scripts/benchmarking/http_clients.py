"""Clients of a server: each streams one completion after another, until no row is left.

    python -m benchmarking.http_clients PORT CLIENTS < rows.json

Rows are objects with `prompt` and `max_tokens`. Prints one JSON object: the seconds of the whole load, the tokens of
all answers, and the seconds to the first token of each row. Talks HTTP over plain sockets, because the clients share
the processors with the server.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from typing import Any


async def answer(port: int, row: dict[str, Any]) -> tuple[float, int]:
    """Stream one completion; return the seconds to its first text, and its number of tokens."""
    body = json.dumps({**row, "stream": True, "stream_options": {"include_usage": True}}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
    writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
    first, tokens, usage = 0.0, 0, None
    async for line in reader:
        if b'"choices"' not in line:
            if line.startswith(b"HTTP/1.1 ") and b" 200 " not in line:
                raise SystemExit(f"the server answers {line.decode().strip()}: {(await reader.read()).decode()[-500:]}")
            continue
        first = first or time.perf_counter()
        tokens += 1
        if b'"completion_tokens"' in line:
            usage = json.loads(line[line.index(b"{") :])["usage"]["completion_tokens"]
    writer.close()
    # llama-cpp-python's server sends no usage, but one event for each token.
    return first - started, tokens if usage is None else usage


async def load(port: int, clients: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Answer all rows with this many clients."""
    waiting: Iterator[dict[str, Any]] = iter(rows)
    found: list[tuple[float, int]] = []

    async def client() -> None:
        for row in waiting:
            found.append(await answer(port, row))

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "tokens": sum(tokens for _, tokens in found), "ttft": [first for first, _ in found]}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(load(int(sys.argv[1]), int(sys.argv[2]), json.load(sys.stdin)))))
