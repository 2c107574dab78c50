"""The HTTP server: it runs in a thread of its own, so that it answers while the model loads, and ends when told.

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

# Seconds after which the interpreter lets another thread run. The engine's thread waits for the lock after each step,
# for 5 ms by default, which is longer than many a step.
SWITCH_INTERVAL = 0.0005
# Seconds that a kept connection may be idle.
KEEP_ALIVE = 75


class _Uvicorn(uvicorn.Server):
    """Leaves signals alone: the command line hears them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    """Serves in a thread.

    Args:
        state: what is served; it may change at any time.
        patience: seconds that running requests have to finish once the server is to end.
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
            # The last second is for those that are cancelled to notice.
            timeout_graceful_shutdown=max(1, round(patience)),
        )
        config.load()
        config.ssl = state.listener.tls
        self._server = _Uvicorn(config)
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)

    def start(self) -> None:
        """Begins to answer."""
        sys.setswitchinterval(SWITCH_INTERVAL)
        self._thread.start()

    def stop(self) -> None:
        """Accepts no connection any more, and waits until the running requests are answered or their time is up."""
        self._state.is_ending = True
        self._server.should_exit = True
        self.join(self._patience + 2)

    def join(self, timeout: float | None = None) -> None:
        """Waits until the server has ended."""
        self._thread.join(timeout)

    def _run(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(self._server.serve(sockets=[self._state.listener.socket]))
