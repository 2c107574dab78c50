"""`--run_mode serve`: serves a model over OpenAI's HTTP API."""

from __future__ import annotations

import importlib.util
import threading
from contextlib import closing
from typing import Any, NoReturn

from inference.api.backend import choose_model_class
from inference.context import build_context
from inference.errors import ConfigError, InferenceError
from inference.generation.model import GenerativeModel
from inference.modes.call import Call
from inference.modes.check import Checked, check_run, prepare, say_what_is_used
from inference.modes.follower import join_others
from inference.parallel import heartbeat
from inference.terminal.output import load_progress, say
from inference.terminal.signals import finishing

PACKAGES = ("starlette", "uvicorn", "prometheus_client")


def check_packages() -> None:
    """Checks that the packages of the extra `serve` are installed.

    Raises:
        ConfigError: a package is missing.
    """
    for name in PACKAGES:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"run_mode serve needs {name}", "pip install 'mindspore-inference[serve]'")


def check(call: Call) -> str:
    check_packages()
    return check_run(call)


def run(call: Call) -> NoReturn:
    """Answers requests until a signal ends the process."""
    config = call.config
    check_packages()
    from inference.serve.app import State
    from inference.serve.listen import listen
    from inference.serve.run import HttpServer
    from inference.serve.service import Service

    listener = listen(config)
    ready = prepare(call, None)
    say_what_is_used(ready)
    state = State(listener, config.serve.page)
    server = HttpServer(state, config.serve.shutdown_seconds)
    server.start()
    with finishing(server.stop):
        build_context(config)
        model = _load(ready)
        with closing(model):
            heartbeat.idle()
            state.service = Service(config, model, ready.tokenizer, ready.encoder)
            say(model.describe_cache())
            say(f"{ready.source.name} answers at {listener.url}/v1 (chat page: {listener.url}/)")
            server.join()
            if state.is_ending:
                # The thread that received the signal ends the process.
                threading.Event().wait(config.serve.shutdown_seconds)
    raise InferenceError("the HTTP server ended unexpectedly", "its log says why")


def _load(ready: Checked) -> GenerativeModel:
    """Loads the model; joins the other ranks if there are any. If a rank is lost, the process ends with its reason."""
    given: dict[str, Any] = {"progress": load_progress(ready.pairs), "say": say}
    if ready.topology.world_size == 1:
        return choose_model_class(ready.config)(ready.source, ready.pairs, **given)
    kernels, ranks = join_others(ready.config, ready.topology)
    return GenerativeModel(ready.source, ready.pairs, **given, ranks=ranks, kernels=kernels)
