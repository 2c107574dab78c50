"""What msrun starts in the place of the command. It waits until the launcher is its parent, takes the command and its
streams from it, and becomes the command; so quotes in the command pass through nobody's hands, and no rank outlives
the launcher.

Run as a script by whatever Python msrun finds; needs the standard library alone.
"""

import ctypes
import json
import os
import signal
import socket
import sys

# Set by the launcher: the name of its socket, in Linux' abstract namespace, which leaves no file behind.
SOCKET = "INFERENCE_LAUNCHER"
# Shared memory in which each rank shows that it goes on; `inference.parallel.heartbeat`.
PULSE = "INFERENCE_PULSE"
PR_SET_PDEATHSIG = 1
MOST_FDS = 4
# What a shell returns for a command that cannot be run.
EXIT_CANNOT_RUN = 126


def main() -> None:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect("\0" + os.environ.pop(SOCKET))
    is_scheduler = os.environ.get("MS_ROLE") == "MS_SCHED"
    rank = None if is_scheduler else int(os.environ["RANK_ID"])
    connection.sendall(json.dumps({"rank": rank}).encode() + b"\n")
    # Answered when msrun has ended, and the launcher is this process' parent.
    order, fds = receive(connection)
    connection.close()
    die_with(order["launcher"])
    restore_signals()
    if is_scheduler:
        os.setsid()
        run([sys.executable, *order["command"]])
    for target, at in order["streams"].items():
        os.dup2(fds[at], int(target))
    if not order["streams"]:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    pulse = fds[order["pulse"]]
    os.set_inheritable(pulse, True)
    os.environ[PULSE] = f"{pulse}:{rank}"
    run(order["command"])


def receive(connection: socket.socket) -> tuple[dict, list[int]]:
    """The launcher's order, and the file descriptors that it names by their place."""
    data, fds, _, _ = socket.recv_fds(connection, 1 << 16, MOST_FDS, socket.MSG_CMSG_CLOEXEC)
    while not data.endswith(b"\n"):
        piece = connection.recv(1 << 16)
        if not piece:
            sys.exit("the launcher has gone")
        data += piece
    return json.loads(data), fds


def die_with(launcher: int) -> None:
    """From here on the kernel kills this process when its parent ends, whatever ends it (prctl(2))."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != launcher:
        sys.exit("the launcher has gone")


def restore_signals() -> None:
    """What a process ignores stays ignored in the program that it becomes: Python ignores the first two, a shell the
    third in the background. No terminal interrupts this process, only the launcher does.
    """
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def run(command: list[str]) -> None:
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.stderr.write(f"error: {command[0]} cannot be run: {error.strerror}\n")
        sys.stderr.flush()
        os._exit(EXIT_CANNOT_RUN)


if __name__ == "__main__":
    main()
