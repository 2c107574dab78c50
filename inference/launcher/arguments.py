"""The launcher's command line: MindFormers' positional arguments, and named options.

Knows the arguments; starts nothing.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from inference.errors import InputError

WORKERS = 8
MASTER = "127.0.0.1"
LOG_DIR = "output/msrun_log"
# MindFormers' own default: two hours.
TIMEOUT = 7200
# Meaning of the positional arguments after the command, by their number: on one machine, and on several.
ONE_NODE = ("workers", "port", "log_dir", "join", "timeout")
NODES = ("workers", "local_workers", "master_addr", "port", "node_rank", "log_dir", "join", "timeout")
TRUE, FALSE = ("true", "1", "yes"), ("false", "0", "no")
HIGHEST_PORT = 65535
PROGRAMS = ("run_inference.py", "mindspore-inference")
# Number of words at the start of a command that may name the program: `python -u run_inference.py`.
FIRST_WORDS = 3
HELP = """Runs COMMAND in N processes, the ranks, with the environment that MindSpore's msrun gives. COMMAND is one
string: it is split into words as a shell does, and nothing in it is expanded. Rank 0 has this terminal's standard
input, output and error; the others write to their logs."""
EXAMPLES = """
Positions, as MindFormers' msrun_launcher.sh has them:
  COMMAND                                                     8 processes
  COMMAND N [PORT [LOG_DIR [JOIN [TIMEOUT]]]]                 N processes
  COMMAND N LOCAL_N MASTER_ADDR PORT NODE_RANK LOG_DIR [JOIN [TIMEOUT]]
                                                              N processes on several machines, LOCAL_N on this one

Examples:
  bash scripts/launcher.sh "python run_inference.py --config demo --use_parallel True \\
      --parallel_config.model_parallel 2 --predict_data 'I love Beijing, because'" 2
  bash scripts/launcher.sh --workers 2 --timeout 600 --tail "python run_inference.py ..."
"""


@dataclass(frozen=True)
class Settings:
    """What to start, and how to start it.

    Args:
        command: the words of the command.
        workers: number of ranks on all machines.
        local_workers: number of ranks on this machine.
        master_addr: the machine with rank 0.
        port: port of the scheduler; None for a free one.
        node_rank: the number of this machine.
        join: wait until all ranks have ended; if False, run in the background.
        timeout: seconds that a rank may be silent; 0 for no limit.
        tail: show the output of all ranks.
    """

    command: tuple[str, ...]
    workers: int = WORKERS
    local_workers: int = WORKERS
    master_addr: str = MASTER
    port: int | None = None
    node_rank: int = 0
    log_dir: Path = Path(LOG_DIR)
    join: bool = True
    timeout: float = TIMEOUT
    tail: bool = False

    @property
    def ranks(self) -> range:
        """The ranks on this machine; all machines have the same number."""
        first = self.node_rank * self.local_workers
        return range(first, first + self.local_workers)

    @property
    def runs_inference(self) -> bool:
        """Whether the command is this project's: it can be checked first, and its run ends with rank 0."""
        return any(Path(word).name in PROGRAMS for word in self.command[:FIRST_WORDS])

    @property
    def on_one_machine(self) -> bool:
        return self.local_workers == self.workers

    def log(self, rank: int) -> Path:
        """Path of a rank's log."""
        return self.log_dir / f"worker_{rank}.log"


class Help(click.Command):
    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write(EXAMPLES)


def build_command(callback: Any) -> click.Command:
    """The command line; `callback` is called with `Settings`."""

    def called(positions: tuple[str, ...], tail: bool, **named: str | None) -> Any:
        return callback(make_settings(positions, {key: value for key, value in named.items() if value}, tail))

    defaults = {"workers": WORKERS, "local_workers": "N", "master_addr": MASTER, "port": "a free one", "node_rank": 0}
    others = {"log_dir": LOG_DIR, "join": True, "timeout": TIMEOUT}
    texts = {
        "workers": "N: processes on all machines.",
        "local_workers": "Processes on this machine.",
        "master_addr": "The machine with rank 0.",
        "port": "Where MindSpore's scheduler listens, on that machine.",
        "node_rank": "Which of the machines this is, from 0.",
        "log_dir": "Where worker_<rank>.log are written.",
        "join": "False: run in the background.",
        "timeout": "Seconds for all to start, and that a rank may give no sign of life; 0 for any time.",
    }
    options = [
        click.Option([f"--{name}"], help=f"{texts[name]} [default: {default}]", metavar=name.upper())
        for name, default in {**defaults, **others}.items()
    ]
    return Help(
        "launcher.sh",
        params=[
            click.Argument(["positions"], nargs=-1, metavar="COMMAND [POSITIONS]"),
            *options,
            click.Option(["--tail"], is_flag=True, help="Show what all ranks say, on standard error."),
        ],
        callback=called,
        help=HELP,
        context_settings={"max_content_width": 120, "help_option_names": ["-h", "--help"]},
    )


def make_settings(positions: Sequence[str], named: dict[str, str], tail: bool = False) -> Settings:
    """Settings from positions and named options.

    Raises:
        InputError: an argument is invalid; the message lists what is accepted.
    """
    if not positions:
        raise InputError("there is no command", 'give it as one string: bash scripts/launcher.sh "python ..." N')
    command, *rest = positions
    if len(rest) > len(NODES):
        raise InputError(f"there are {len(positions)} positions, at most {len(NODES) + 1} are accepted", "see --help")
    given = dict(zip(ONE_NODE if len(rest) <= len(ONE_NODE) else NODES, rest, strict=False))
    twice = sorted(set(given) & set(named))
    if twice:
        raise InputError(f"{twice[0]} is given as a position and as --{twice[0]}", "give it once")
    given |= named
    workers = _number(given, "workers", WORKERS, 1)
    local = _number(given, "local_workers", workers, 1)
    port = _number(given, "port", 0, 0, HIGHEST_PORT)
    settings = Settings(
        _words(command),
        workers,
        local,
        given.get("master_addr", MASTER),
        port or None,
        _number(given, "node_rank", 0, 0),
        Path(given.get("log_dir", LOG_DIR)),
        _truth(given, "join", True),
        _number(given, "timeout", TIMEOUT, 0),
        tail,
    )
    _check(settings, given)
    return settings


def _check(settings: Settings, given: dict[str, str]) -> None:
    workers, local = settings.workers, settings.local_workers
    if workers % local:
        raise InputError(
            f"{workers} workers cannot be {local} on each machine", f"give a number that divides {workers}"
        )
    if settings.on_one_machine:
        if settings.node_rank:
            raise InputError(
                f"node_rank is {settings.node_rank}, and all {workers} workers are on this machine",
                "give --local_workers, or node_rank 0",
            )
        return
    for name in ("master_addr", "port", "node_rank"):
        if name not in given or (name == "port" and settings.port is None):
            raise InputError(f"{local} of {workers} workers are on this machine, and --{name} is missing", "give it")
    nodes = workers // local
    if settings.node_rank >= nodes:
        raise InputError(f"node_rank is {settings.node_rank}, the machines are 0 to {nodes - 1}")


def _words(command: str) -> tuple[str, ...]:
    try:
        words = tuple(shlex.split(command))
    except ValueError as error:
        raise InputError(f"the command cannot be split into words ({error}): {command}") from None
    if not words:
        raise InputError("the command is empty")
    if shutil.which(words[0]) is None:
        raise InputError(
            f"the command's first word, {words[0]}, is not a program", "the command is one string, in quotes"
        )
    return words


def _number(given: dict[str, str], name: str, default: int, least: int, most: int | None = None) -> int:
    text = given.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or int(text) < least or (most is not None and int(text) > most):
        limits = f"from {least}" if most is None else f"from {least} to {most}"
        raise InputError(f"{name} must be a whole number {limits}, got '{text}'")
    return int(text)


def _truth(given: dict[str, str], name: str, default: bool) -> bool:
    text = given.get(name)
    if text is None:
        return default
    if text.lower() not in TRUE + FALSE:
        raise InputError(f"{name} must be True or False, got '{text}'")
    return text.lower() in TRUE
