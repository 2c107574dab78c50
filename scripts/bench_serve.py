"""Compares the server with `LLM` offline on the same rows, and with llama-cpp-python's server on the same GGUF file.

    python scripts/bench_serve.py --model model.gguf
    python scripts/bench_serve.py --model model.gguf --llama-python /path/to/a/venv/bin/python --rounds 3

Each row asks for a number of new tokens of its own. Offline, all rows are given at once; through a server, each client
streams one row after another. Every round runs each way once, on one loaded model. The clients run in a process of
their own on the same machine. On a machine that other programs share, the processor time says more than tokens/s.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import click

HERE = Path(__file__).resolve().parent
WORDS = "a one dog cat house river tree runs sees finds small red old and then under near because".split()  # noqa: SIM905
Row = dict[str, Any]


@dataclass
class Figures:
    """The results of one way in one round."""

    seconds: float
    tokens: int
    ttft: list[float]
    cpu: float = 0.0
    """Seconds of processor time of this process; 0 if another one computes."""

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


def make_rows(count: int, most_words: int, most_new: int) -> list[Row]:
    """Make prompts of random words and their numbers of new tokens; the same in every run."""
    numbers = random.Random(0)
    return [
        {
            "prompt": " ".join(numbers.choices(WORDS, k=numbers.randint(8, most_words))),
            "max_tokens": numbers.randint(most_new // 4, most_new),
        }
        for _ in range(count)
    ]


def through(port: int, clients: int, rows: list[Row], is_ours: bool = True) -> Figures:
    """Send the rows to a server; ours is in this process."""
    command = [sys.executable, "-m", "benchmarking.http_clients", str(port), str(clients)]
    used = time.process_time()
    done = subprocess.run(command, input=json.dumps(rows), stdout=subprocess.PIPE, text=True, check=True, cwd=HERE)
    return Figures(**json.loads(done.stdout), cpu=time.process_time() - used if is_ours else 0.0)


def offline(llm: Any, rows: list[Row]) -> Figures:
    """Give all rows to `LLM` at once."""
    given = [{"prompt": row["prompt"], "max_new_tokens": row["max_tokens"], "ignore_eos": True} for row in rows]
    started, used = time.perf_counter(), time.process_time()
    done = list(llm.as_completed(given))
    seconds, used = time.perf_counter() - started, time.process_time() - used
    return Figures(seconds, sum(one.completion_tokens for one in done), [one.ttft_seconds for one in done], used)


@contextlib.contextmanager
def ours(model: str, at_once: int, threads: int) -> Iterator[tuple[Any, int]]:
    """Yield a loaded `LLM`, and the port of a server on the same model."""
    from inference import LLM, load_config
    from inference.serve.app import State
    from inference.serve.listen import listen
    from inference.serve.run import HttpServer
    from inference.serve.service import Service

    engine = {"prefix_cache": False, "threads": threads}
    serve = {"port": 0, "shutdown_seconds": 1}
    config = load_config(
        {"pretrained_model_dir": model, "predict_batch_size": at_once, "engine": engine, "serve": serve}
    )
    llm = LLM(config)
    state = State(listen(config))
    state.service = Service(config, llm.model, llm.tokenizer, llm.model.encoder(llm.tokenizer))
    server = HttpServer(state, 1)
    server.start()
    try:
        yield llm, state.listener.port
    finally:
        server.stop()


@contextlib.contextmanager
def llama_cpp(python: str, model: str, threads: int) -> Iterator[int]:
    """Yield the port of llama-cpp-python's server, which answers one request at a time."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [python, "-m", "llama_cpp.server", "--model", model, "--port", str(port), "--n_ctx", "2048"]
    command += ["--n_threads", str(threads), "--n_threads_batch", str(threads), "--interrupt_requests", "False"]
    server = subprocess.Popen([*command, "--verbose", "False"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            if server.poll() is not None or time.monotonic() > until:
                raise click.ClickException("llama-cpp-python's server does not start")
            time.sleep(0.2)
        yield port
    finally:
        server.terminate()
        server.wait()


def table(found: dict[str, list[Figures]]) -> str:
    """Return a table in Markdown; ratios are medians over the rounds."""
    lines = [
        "| | tokens/s | x offline | TTFT p50 | TTFT p99 | CPU time for 1,000 tokens |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, rounds in found.items():
        base = found["offline"][: len(rounds)]
        ratio = statistics.median(mine.rate / other.rate for mine, other in zip(rounds, base, strict=True))
        times = sorted(second for one in rounds for second in one.ttft)
        high = times[min(len(times) - 1, int(len(times) * 0.99))]
        rate = statistics.median(one.rate for one in rounds)
        used = statistics.median(one.cpu / one.tokens * 1000 for one in rounds)
        cpu = f"{used:.2f} s" if used else ""
        middle = statistics.median(times)
        lines.append(f"| {name} | {rate:.1f} | {ratio:.2f} | {middle:.2f} s | {high:.2f} s | {cpu} |")
    return "\n".join(lines)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--model", required=True, help="a GGUF file, or for our own server any checkpoint")
@click.option("--clients", default=32, show_default=True, help="clients, and most rows in a step")
@click.option("--rows", "count", default=96, show_default=True)
@click.option("--words", default=64, show_default=True, help="most words of a prompt")
@click.option("--new", default=96, show_default=True, help="most new tokens of a row")
@click.option("--threads", default=2, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--llama-python", help="a Python that has llama-cpp-python[server]; left out if not given")
@click.option("--llama-rows", default=12, show_default=True, help="rows for llama-cpp-python's server")
def main(
    model: str,
    clients: int,
    count: int,
    words: int,
    new: int,
    threads: int,
    rounds: int,
    llama_python: str | None,
    llama_rows: int,
) -> None:
    """Print a table."""
    rows = make_rows(count, words, new)
    asked = [{**row, "ignore_eos": True} for row in rows]
    found: dict[str, list[Figures]] = {}
    with contextlib.ExitStack() as stack:
        llm, port = stack.enter_context(ours(model, clients, threads))
        ways: dict[str, Callable[[], Figures]] = {
            "offline": lambda: offline(llm, rows),
            f"server, {clients} clients": lambda: through(port, clients, asked),
        }
        if llama_python:
            other = stack.enter_context(llama_cpp(llama_python, model, threads))
            ways["llama-cpp-python's server"] = lambda: through(other, clients, rows[:llama_rows], False)
        for way in ways.values():
            way()  # warm up
        for turn in range(rounds):
            for name, way in list(ways.items())[:: -1 if turn % 2 else 1]:
                found.setdefault(name, []).append(way())
    click.echo(f"{Path(model).name}: {count} rows, {clients} clients, {threads} threads, {rounds} rounds\n")
    click.echo(table({name: found[name] for name in ways}))


if __name__ == "__main__":
    main()
