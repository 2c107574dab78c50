"""`--run_mode serve` as a process: what is wrong is said before the model loads, and signals end it in order."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import inference.modes.serve  # noqa: F401

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, str(ROOT / "run_inference.py"), "--config", "demo", "--run_mode", "serve"]


def refused(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The line that the command line says, with exit code 2, in this process: no model may be loaded for it."""
    from inference.cli.main import _report, _run
    from inference.cli.options import build_command, spread

    try:
        build_command(_run).main(
            spread(["--config", "demo", "--run_mode", "serve", *arguments]), standalone_mode=False, obj=list(arguments)
        )
    except BaseException as error:
        assert _report(error) == 2
    else:
        raise AssertionError("it was not refused")
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


class TestBeforeTheModelLoads:
    @pytest.fixture(autouse=True)
    def no_model(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*arguments: Any, **more: Any) -> None:
            raise AssertionError("the model was loaded")

        monkeypatch.setattr(sys.modules["inference.modes.serve"], "build_context", fail)

    def test_a_port_in_use(self, capfd) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            line = refused(capfd, "--serve.port", str(port))
        assert f"port {port} of 127.0.0.1 is in use" in line and "--serve.port" in line

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--serve.prot", "1"], "did you mean 'port'"),
            (["--serve.port", "70000"], "serve.port must be"),
            (["--serve.host", "0.0.0.0", "--serve.port", "0"], "there is no key"),
            (["--serve.host", "no such host", "--serve.port", "0"], "serve.host"),
            (["--serve.api_key_env", "NO_SUCH_KEY_OF_THE_TEST", "--serve.port", "0"], "NO_SUCH_KEY_OF_THE_TEST"),
            (["--serve.certificate", "no.pem", "--serve.port", "0"], "no.pem is not a file"),
            (["--serve.certificate_key", "no.pem", "--serve.port", "0"], "without serve.certificate"),
        ],
    )
    def test_settings(self, capfd, arguments: list[str], message: str) -> None:
        assert message in refused(capfd, *arguments)

    def test_an_invalid_certificate(self, capfd, tmp_path: Path) -> None:
        file = tmp_path / "bad.pem"
        file.write_text("nonsense")
        assert "bad.pem cannot be used" in refused(capfd, "--serve.certificate", str(file), "--serve.port", "0")


@pytest.fixture(scope="module")
def process() -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """A server in a process of its own, its address, and what it says."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DEMO_KEY": "sk-demo"}
    command = [*COMMAND, "--serve.port", "0", "--serve.api_key_env", "DEMO_KEY", "--engine.kv_cache_memory", "16MiB"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    said: list[str] = []
    address = ""
    assert running.stderr is not None
    for line in running.stderr:
        said.append(line)
        if " answers at " in line:
            address = line.partition(" answers at ")[2].split()[0].removesuffix("/v1")
            break
    assert address, "".join(said)
    reader = threading.Thread(target=lambda: said.extend(running.stderr or ()), daemon=True)
    reader.start()
    yield running, address, said
    running.kill()
    running.wait()
    reader.join(5)


def test_sigterm_finishes_running_requests(process) -> None:
    """Also: it answered before, with the key, and never wrote the key anywhere."""
    running, address, said = process
    headers = {"Authorization": "Bearer sk-demo"}
    assert httpx.get(f"{address}/ready").json() == {"status": "ready"}
    assert httpx.post(f"{address}/v1/completions", json={"prompt": "a"}).status_code == 401
    body = {"prompt": "Once upon a time", "max_tokens": 300, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{address}/v1/completions", json=body, headers=headers, timeout=60) as stream:
        lines = stream.iter_lines()
        first = next(lines)
        running.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 10
        while True:
            try:
                httpx.get(f"{address}/health")
            except httpx.ConnectError:
                break
            assert time.monotonic() < deadline, "it goes on taking connections"
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    last = json.loads(rest[-2].removeprefix("data: "))["choices"][0]
    assert last["finish_reason"] == "length" and first.startswith("data: ")
    assert running.wait(20) == 128 + signal.SIGTERM
    assert running.stdout is not None and running.stdout.read() == ""
    assert said[-1] == "error: terminated\n"
    assert "sk-demo" not in "".join(said)
