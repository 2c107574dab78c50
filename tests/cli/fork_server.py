"""Processes of the command line that have its imports behind them: each is forked off one that has made them.

Imports, MindSpore's above all, are most of what a run of the demo model costs. Words, directory, environment, streams
and exit code of a run are its own; what Python itself takes from the environment at its start is the server's.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

PROGRAM = Path(__file__).parents[2] / "run_inference.py"
# Bytes of a request's length, which comes with the run's streams.
HEAD = 8


class ForkServer:
    """Runs of run_inference.py, one after the other."""

    def __init__(self) -> None:
        self._connection, theirs = socket.socketpair()
        with theirs:
            words = [sys.executable, __file__, str(theirs.fileno())]
            # Pipes, as a run's own: Python remembers of its streams whether they can be sought in.
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            self._process = subprocess.Popen(words, **pipes, pass_fds=[theirs.fileno()])
        self._replies = self._connection.makefile()

    def run(
        self, words: Sequence[str], directory: Path, environment: Mapping[str, str], given: bytes, timeout: float
    ) -> tuple[int, bytes, bytes]:
        """Exit code, standard output and standard error of a run that finds `given` on its standard input.

        Raises:
            TimeoutError: it was killed after so many seconds.
        """
        (stdin, ours), (out, stdout), (err, stderr) = os.pipe(), os.pipe(), os.pipe()
        body = json.dumps([list(words), str(directory), dict(environment)]).encode()
        streams = [stdin, stdout, stderr]
        socket.send_fds(self._connection, [len(body).to_bytes(HEAD, "little")], streams)
        self._connection.sendall(body)
        for stream in streams:
            os.close(stream)
        said: dict[int, bytes] = {}
        threads = [threading.Thread(target=_write, args=(ours, given))]
        threads += [threading.Thread(target=_read, args=(stream, said)) for stream in (out, err)]
        for thread in threads:
            thread.start()
        self._connection.settimeout(timeout)
        pid = int(self._replies.readline())
        try:
            code = int(self._replies.readline())
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            raise
        for thread in threads:
            thread.join()
        return code, said[out], said[err]

    def close(self) -> None:
        self._replies.close()
        self._connection.close()
        self._process.communicate()


def _write(stream: int, data: bytes) -> None:
    with contextlib.suppress(BrokenPipeError), open(stream, "wb") as file:
        file.write(data)


def _read(stream: int, said: dict[int, bytes]) -> None:
    with open(stream, "rb") as file:
        said[stream] = file.read()


def serve(connection: socket.socket) -> None:
    """Forks a process for each request, and answers with its number and then with its exit code."""
    while head := socket.recv_fds(connection, HEAD, 3):
        size, streams = int.from_bytes(head[0], "little"), head[1]
        if not streams:
            return
        request = b""
        while len(request) < size:
            request += connection.recv(size - len(request))
        pid = os.fork()
        if not pid:
            connection.close()
            become(*json.loads(request), streams)
        for stream in streams:
            os.close(stream)
        connection.sendall(f"{pid}\n".encode())
        connection.sendall(f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n".encode())


def become(words: list[str], directory: str, environment: dict[str, str], streams: list[int]) -> None:
    """Is the program from here on."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [str(PROGRAM), *words]
    code = 0
    try:
        run_inference.run()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    # What the program would find.
    sys.argv[0], sys.path[0] = str(PROGRAM), str(PROGRAM.parent)
    import inference.cli.main
    import inference.generation.model
    import inference.modes  # noqa: F401
    import run_inference
    from inference.context import import_mindspore

    # MindSpore starts its threads when a context is built, not when it is imported: a forked process has its own.
    import_mindspore()
    serve(socket.socket(fileno=int(sys.argv[1])))
