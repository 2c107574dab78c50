"""The server on two ranks, which share one model."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import httpx
import pytest
from launching import ROOT, Launcher, quoted, wait_until

SERVE = ("--config", "demo", "--run_mode", "serve", "--serve.port", "0", "--use_parallel", "True")
MODEL = ("--parallel_config.model_parallel", "2", "--engine.kv_cache_memory", "16MiB")


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_server_with_its_reason(tmp_path: Path) -> None:
    launcher = Launcher(tmp_path, fake=False)
    launcher.environment |= {"HF_HUB_OFFLINE": "1"}
    said = tmp_path / "stderr"
    with said.open("wb") as file:
        line = quoted("python", str(ROOT / "run_inference.py"), *SERVE, *MODEL)
        process = launcher.start(line, 2, stderr=file)
    try:
        address = wait_until(lambda: " answers at " in said.read_text() and said.read_text())
        url = address.partition(" answers at ")[2].split("/v1")[0]
        with httpx.Client(base_url=url, timeout=60) as client:
            body = {"prompt": "Once upon a time", "max_tokens": 8}
            texts = [client.post("/v1/completions", json=body).json()["choices"][0]["text"] for _ in range(2)]
            assert texts[0] == texts[1] and texts[0].strip()
            (item,) = client.post("/v1/embeddings", json={"input": "A dog"}).json()["data"]
            assert abs(sum(number**2 for number in item["embedding"]) - 1) < 1e-3
            body |= {"max_tokens": 400, "ignore_eos": True, "stream": True}
            with client.stream("POST", "/v1/completions", json=body) as stream:
                next(stream.iter_lines())
                log = (launcher.logs / "worker_1.log").read_text()
                os.kill(int(log.partition("process ")[2].split()[0]), signal.SIGKILL)
                assert process.wait(20) == 128 + signal.SIGKILL
        assert "launcher: rank 1 was killed by SIGKILL" in said.read_text()
        assert "error: rank 1 is gone" in said.read_text()
        assert launcher.processes() == {}
    finally:
        for pid in launcher.processes():
            os.kill(pid, signal.SIGKILL)
