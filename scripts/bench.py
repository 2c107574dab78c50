"""Measures speed, memory and start-up on this machine, beside any installed peers, and prints a table.

    python scripts/bench.py                                  # llama-1b in every weight format, and the start-up
    python scripts/bench.py --models llama-15m --dtypes float32,int4 --rounds 5 --plot bench.png
    python scripts/bench.py --peers llamacpp,hf --peer-python llamacpp=VENV/bin/python --format jsonl --save bench.jsonl
    python scripts/bench.py --harness --help                 # one task of a peer benchmark's harness

Checkpoints have random weights and are created once, in --work. Every measurement runs in its own process; the
processes of a round run one after the other and the rounds are repeated, so that temporary load on the machine favors
none of them. Figures are medians over the rounds. docs/benchmark.md defines each of them.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

# Also lets this script import the project without installing it.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if sys.argv[1:2] == ["--harness"]:
    # Must precede the imports below: the harness measures from the start of the process.
    from benchmarking import harness

    if __name__ == "__main__":
        harness.main(sys.argv[2:])
        sys.exit()

import click

from benchmarking import machine, plot, programs, rounds, startup, table
from benchmarking.shapes import SHAPES, make_checkpoint

DTYPES = ("float32", "float16", "bfloat16", "int8", "int4", "auto")
CORES = len(os.sched_getaffinity(0))


class Names(click.ParamType):
    """A comma-separated list of names from a set."""

    name = "names"

    def __init__(self, accepted: tuple[str, ...]):
        self.accepted = accepted

    def convert(self, value: str | list[str], param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        if isinstance(value, list):
            return value
        names = [name for name in value.split(",") if name]
        for name in names:
            if name not in self.accepted:
                self.fail(f"'{name}' is none of {', '.join(self.accepted)}", param, ctx)
        return names


def say(text: str) -> None:
    """Print one line to stderr."""
    click.echo(text, err=True)


def model_directories(names: str, work: Path) -> list[Path]:
    """Return a directory per model: a checkpoint created for a shape, or the given directory."""
    directories = []
    for name in filter(None, names.split(",")):
        if name not in SHAPES and not (Path(name) / "config.json").exists():
            raise click.BadParameter(
                f"'{name}' is none of {', '.join(SHAPES)}, and no directory with a config.json", param_hint="--models"
            )
        if name in SHAPES:
            say(f"checkpoint: {work / 'models' / name}")
        directories.append(
            make_checkpoint(work / "models" / name, SHAPES[name]) if name in SHAPES else Path(name).resolve()
        )
    return directories


def interpreters(given: tuple[str, ...]) -> dict[str, str]:
    """Parse NAME=PATH into interpreters by peer."""
    pythons = {}
    for text in given:
        name, _, path = text.partition("=")
        if name not in programs.PEERS or not os.access(path, os.X_OK):
            raise click.BadParameter(
                f"'{text}': give NAME=PATH, of {', '.join(programs.PEERS)} and an interpreter",
                param_hint="--peer-python",
            )
        pythons[name] = str(Path(path).absolute())
    return pythons


def writable(path: Path | None, flag: str) -> None:
    """Reject a file that cannot be written, before anything is measured."""
    if path and not path.absolute().parent.is_dir():
        raise click.BadParameter(f"{path.parent} is no directory", param_hint=flag)


def build_gauge(work: Path) -> Path | None:
    """Build the program that measures the machine; None, with a line on stderr, if it cannot be built."""
    try:
        return machine.build(work)
    except machine.MachineError as error:
        say(f"{error}: bandwidth and GFLOP/s of the machine are not measured")
        return None


def make_cases(
    directories: list[Path],
    dtypes: list[str],
    kernels: str,
    peers: list[str],
    pythons: dict[str, str],
    work: Path,
    threads: int,
    converted: bool,
) -> list[programs.Case]:
    """Prepare every row of the table with the files that it needs; report those that cannot be prepared."""
    sets = ("native", "stock") if kernels == "both" else (kernels,)
    cases = []
    for directory in directories:
        for dtype in dtypes:
            target = programs.convert(directory, dtype, work, say) if converted and dtype != "auto" else None
            cases += [programs.our_case(directory, dtype, which, threads, target) for which in sets]
        for name in peers:
            for case in programs.peer_cases(name, pythons.get(name, sys.executable), directory, work, threads):
                try:
                    programs.prepare(case, say)
                except programs.CallError as error:
                    say(f"{case} cannot be prepared and is left out: {error}")
                else:
                    cases.append(case)
    return cases


@click.command(help=__doc__.split("\n")[0])
@click.option(
    "--models", default="llama-1b", show_default=True, help=f"Of {', '.join(SHAPES)}, or checkpoint directories."
)
@click.option(
    "--dtypes", type=Names(DTYPES), default="float32,bfloat16,int8,int4", show_default=True, help="Our weights."
)
@click.option("--kernels", type=click.Choice(["native", "stock", "both"]), default="native", show_default=True)
@click.option("--peers", type=Names(tuple(programs.PEERS)), default="", help=f"Of {', '.join(programs.PEERS)}.")
@click.option("--peer-python", multiple=True, metavar="NAME=PATH", help="A peer's interpreter; this one if not given.")
@click.option("--threads", type=click.IntRange(1), default=CORES, show_default=True, help="CPU threads.")
@click.option("--rounds", "count", type=click.IntRange(1), default=3, show_default=True, help="Of these, medians.")
@click.option("--work", type=Path, default=Path(tempfile.gettempdir()) / "inference-bench", show_default=True)
@click.option("--converted/--no-converted", default=True, help="Measure loading from converted directories as well.")
@click.option(
    "--format", "form", type=click.Choice(["markdown", "csv", "jsonl"]), default="markdown", show_default=True
)
@click.option("--save", type=Path, help="Write the table to this file as well.")
@click.option(
    "--plot", "picture", type=Path, help="Draw the table into this file, such as bench.png (needs matplotlib)."
)
@click.option("--startup/--no-startup", "with_startup", default=True, help="Measure the start-up of the demo model.")
def main(
    models: str,
    dtypes: list[str],
    kernels: str,
    peers: list[str],
    peer_python: tuple[str, ...],
    threads: int,
    count: int,
    work: Path,
    converted: bool,
    form: str,
    save: Path | None,
    picture: Path | None,
    with_startup: bool,
) -> None:
    pythons = interpreters(peer_python)
    writable(save, "--save")
    writable(picture, "--plot")
    if picture and not plot.is_available():
        say("--plot is passed over: it needs matplotlib, which is not installed (pip install matplotlib)")
        picture = None
    work = work.absolute()
    found = programs.installed_peers(peers, pythons, say)
    try:
        directories = model_directories(models, work)
        cases = make_cases(directories, dtypes, kernels, found, pythons, work, threads, converted)
        measured = rounds.run(cases, count, threads, build_gauge(work), say)
        rows = [rounds.row(case, threads, measured[case]) for case in cases]
        rounds.compare(rows)
        whole = startup.measure(count, threads) if with_startup else []
    except programs.CallError as error:
        raise click.ClickException(str(error)) from error
    text = table.render(rows, whole, form)
    if save:
        save.write_text(text + "\n", encoding="utf-8")
    click.echo(text)
    if picture and rows:
        plot.draw(rows, picture)
    say(f"{machine.name()}; {threads} threads; medians of {count} rounds; {versions(rows)}")
    if any("decode_1_tok_s" not in row for row in rows):
        raise click.exceptions.Exit(1)


def versions(rows: list[rounds.Figures]) -> str:
    """Return the versions of all measured programs."""
    return ", ".join(dict.fromkeys(row["version"] for row in rows if "version" in row))


if __name__ == "__main__":
    main()
