"""The HTTP server: runs in its own thread, so that it answers while the model loads, and shuts down on request.

Knows uvicorn; knows nothing about models.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import Iterator

import uvicorn

from inference.serve.app import State, build_app
from inference.serve.listen import BACKLOG

# The interpreter's thread switch interval, in seconds. The engine's thread waits for the GIL after each step; the
# default of 5 ms is longer than many steps.
SWITCH_INTERVAL = 0.0005
# Seconds that a keep-alive connection may be idle.
KEEP_ALIVE = 75


class _Uvicorn(uvicorn.Server):
    """Installs no signal handlers: the command line handles signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    """Runs the server in a thread.

    Args:
        state: the state to serve; it may change at any time.
        patience: seconds that running requests get to finish once shutdown starts.
    """

    def __init__(self, state: State, patience: float):
        self._state, self._patience = state, patience
        config = uvicorn.Config(
            build_app(state),
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE,
            # Allow at least one second, so that cancelled requests can finish.
            timeout_graceful_shutdown=max(1, round(patience)),
        )
        config.load()
        config.ssl = state.listener.tls
        self._server = _Uvicorn(config)
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)

    def start(self) -> None:
        """Starts the server."""
        sys.setswitchinterval(SWITCH_INTERVAL)
        self._thread.start()

    def stop(self) -> None:
        """Stops accepting connections, and waits until the running requests finish or their time is up."""
        self._state.is_ending = True
        self._server.should_exit = True
        self.join(self._patience + 2)

    def join(self, timeout: float | None = None) -> None:
        """Waits until the server has stopped."""
        self._thread.join(timeout)

    def _run(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(self._server.serve(sockets=[self._state.listener.socket]))
