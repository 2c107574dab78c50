"""The command line: turns flags into a config, runs its mode, and turns errors into one line and an exit code.

Knows flags, help and exit codes; `modes` does all the work. Imports nothing heavy, so that `--help` and a mistyped
flag answer at once.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import io
import os
import re
import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from inference import __version__
from inference.cli.options import COMPLETION_VARIABLE, OVERWRITE, PROGRAM, build_command, flag_names, spread
from inference.config import InferenceConfig, Override, load_config, parse_override, parse_value
from inference.config.error_messages import known_keys
from inference.config.flags import FLAGS, OTHER_NAMES, Flag
from inference.config.presets import find_preset, is_preset
from inference.config.run_modes import RUN_MODES
from inference.config.secrets import arguments_without_secrets, hide_secrets
from inference.errors import EXIT_FAILURE, EXIT_USAGE, ConfigError, InferenceError, did_you_mean, is_out_of_memory
from inference.launcher import RELAUNCH
from inference.parallel.topology import is_scheduler, is_worker
from inference.terminal.signals import begin_end, watch
from inference.terminal.style import styled

LONGEST_NAME = 80  # characters of a file name that is too long
FEW = 3  # keys without effect that are named
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
YAML = (".yaml", ".yml")
# Sections in which to look for a key that was given as a flag but has none.
SECTIONS = (
    *("generation_config", "engine", "output", "context", "model.model_config", "processor.tokenizer"),
    *("serve", "chat", "evaluate", "validation", "pipeline"),
)


def _run(**given: Any) -> int:
    if given["version"]:
        click.echo(f"mindspore-inference {__version__}")
    elif given["list_models"]:
        from inference.cli.model_list import model_list

        click.echo(model_list())
    elif given["show_completion"]:
        _show_completion(given["show_completion"])
    else:
        return _with_config(given)
    return 0


def _with_config(given: dict[str, Any]) -> int:
    name, model = given["config"] or given["model"], given["model"]
    overrides = _overrides(given)
    if given["config"] and model:
        overrides.insert(0, Override("pretrained_model_dir", model, "--model"))
    if not name:
        if given["beam"]:
            raise click.exceptions.NoSuchOption(given["beam"][0].partition("=")[0])
        if not (given["pretrained_model_dir"] or given["load_checkpoint"]):
            raise click.UsageError(
                "--config is missing; give a YAML file or a preset's name, or --model a model; --list_models lists the "
                "presets, --help shows an example"
            )
        config = load_config({}, overrides=overrides)
    elif _is_model(name) or (not given["config"] and not _is_config(name)):
        flag = "--config" if given["config"] else "--model"
        config = load_config({}, overrides=[Override("pretrained_model_dir", name, flag), *overrides])
    else:
        config = load_config(_config_file(name), overrides=overrides)
    if given["beam"] and not RUN_MODES[config.run_mode].takes_beam_options:
        raise click.exceptions.NoSuchOption(given["beam"][0].partition("=")[0])
    if given["print_config"]:
        from inference.modes.model_comments import model_as_comments

        click.echo("\n".join([config.to_yaml().rstrip("\n"), *model_as_comments(config)]))
        return 0
    return _act(config, given)


def _is_model(name: str) -> bool:
    """Returns whether a name is that of a model, not of a config: a directory, a GGUF file, or `org/name` on the
    hub.
    """
    path = Path(name)
    with contextlib.suppress(OSError, ValueError):
        if path.is_dir():
            return (path / "config.json").is_file()
        is_hub_name = HUB_NAME.fullmatch(name) is not None and not path.parent.exists()
        return path.suffix.lower() == ".gguf" or (is_hub_name and not path.is_file() and path.suffix not in YAML)
    return False


def _is_config(name: str) -> bool:
    return name.endswith(YAML) or is_preset(name)


def _config_file(name: str) -> Path:
    """Returns a config file or the preset of that name; a plain word that is neither is treated as a preset name."""
    path = Path(name)
    is_word = path.name == name and not path.suffix and not path.exists()
    if is_word or (is_preset(name) and not path.is_file()):
        return find_preset(name)
    stem = path.stem.removeprefix("predict_")
    if path.suffix in YAML and is_preset(stem) and not path.exists():
        # Somebody who runs the documentation's commands outside the repository.
        raise ConfigError(f"{name} does not exist", f"did you mean the preset, '--config {stem}'?")
    return path


def _act(config: InferenceConfig, given: dict[str, Any]) -> int:
    if not given["check"]:
        _say_what_loads(config)
    # Imported here because these import tokenizers and models, which would slow down --help.
    from inference import modes
    from inference.terminal.output import say

    call = modes.Call(
        config,
        tuple(given["predict_data"] or config.input_data or ()),
        tuple(given["beam"]),
        overwrite=given["overwrite"],
        resume=given["resume"] or given["retry_failed"],
        retry_failed=given["retry_failed"],
        resume_command=resume_command(click.get_current_context().obj),
    )
    if given["predict_data"] and not call.mode.takes_prompts:
        raise ConfigError(f"--predict_data: run_mode {config.run_mode} takes no prompts", "leave it out")
    if given["check"]:
        click.echo(modes.check(call))
        for key, where in config.unused_keys:
            click.echo(f"no effect: {key} ({where})")
        return 0
    if config.unused_keys and call.topology.is_root:
        say(f"without effect here: {_unused(config)}")
    return modes.run(call)


def _say_what_loads(config: InferenceConfig) -> None:
    """Names the model on a terminal before the imports that take seconds; nobody waits at a pipe."""
    name = config.load_checkpoint or config.pretrained_model_dir
    if name and sys.stderr.isatty() and not is_worker() and RUN_MODES[config.run_mode].loads_model:
        sys.stderr.write(f"{styled(f'loading {name}', sys.stderr, dim=True)}\n")
        sys.stderr.flush()


def _unused(config: InferenceConfig) -> str:
    """Returns the keys that have no effect if they are few, else their number."""
    keys = [key if where.startswith("-") and key in where else f"{key} ({where})" for key, where in config.unused_keys]
    return ", ".join(keys) if len(keys) <= FEW else f"{len(keys)} keys of the config (--check lists them)"


def resume_command(arguments: Sequence[str]) -> str:
    """Returns the command line that resumes a run with these arguments, through the launcher if that started it."""
    program = ["python", sys.argv[0]] if PROGRAM.endswith(".py") else PROGRAM.split()
    kept = [argument for argument in arguments if argument not in (*OVERWRITE, "--resume")]
    line = shlex.join([*program, *arguments_without_secrets(kept), "--resume"])
    relaunch = os.environ.get(RELAUNCH)
    return relaunch.replace("{}", shlex.quote(line)) if relaunch else line


def _overrides(given: dict[str, Any]) -> list[Override]:
    """Lists the overrides in the order of the flag table, then --options and dotted flags, which name keys exactly."""
    overrides = []
    for flag in FLAGS:
        value = given[flag.name.lstrip("-")]
        if value is None or value == ():
            continue
        overrides.append(_flag_override(flag, value))
    if given["no_echo"]:
        overrides.append(Override("output.echo", False, "--no_echo"))
    if given["no_stream"]:
        overrides.append(Override("output.stream", False, "--no-stream"))
    overrides += [parse_override(text) for text in given["options"]]
    return overrides + [parse_override(text, origin=f"--{text.partition('=')[0]}") for text in given["key"]]


def _flag_override(flag: Flag, value: Any) -> Override:
    if flag.kind is str:
        return Override(flag.path, list(value) if flag.multiple else value, flag.name)
    return Override(flag.path, parse_value(value), flag.name)


def _show_completion(shell: str) -> None:
    from click.shell_completion import get_completion_class

    completion = get_completion_class(shell)
    assert completion is not None
    click.echo(completion(build_command(_run), {}, PROGRAM, COMPLETION_VARIABLE).source())


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line and exits with 0 for success, 1 for a failure, 2 for a user error, 3 for failed rows, 4 for
    a missed threshold, or 128 + the number of the signal that ended the process (130 for Ctrl-C).
    """
    _prepare_streams()
    watch()
    if is_scheduler():
        from inference.parallel.msrun_scheduler import main as schedule

        schedule()
        sys.exit(0)
    given = list(sys.argv[1:] if arguments is None else arguments)
    failed = False
    try:
        code = build_command(_run).main(
            spread(given), prog_name=PROGRAM, complete_var=COMPLETION_VARIABLE, standalone_mode=False, obj=given
        )
    except BaseException as error:
        begin_end()
        failed = not isinstance(error, SystemExit)
        if "--traceback" in given and not isinstance(error, click.ClickException):
            traceback.print_exc()
        code = _report(error)
    if is_worker():
        from inference.parallel.start import stay_away

        stay_away()
    _leave(code if isinstance(code, int) else 0, failed)


def _prepare_streams() -> None:
    """Sets the encoding of stdout and stderr: UTF-8 for files and pipes, whatever the locale. A terminal keeps its own
    encoding, and characters that it cannot show become `?`.

    A shell's `>&-` leaves None in place of a stream; it is replaced by the null device.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        encoding = sys.stdout.encoding if sys.stdout.isatty() else "utf-8"
        sys.stdout.reconfigure(encoding=encoding, errors="replace")


def _report(error: BaseException) -> int:
    """Reports an error in one line; returns the exit code."""
    if isinstance(error, click.exceptions.NoSuchOption):
        return _fail(f"there is no flag {error.option_name}", _nearest_flag(error.option_name), EXIT_USAGE)
    if isinstance(error, click.ClickException):
        return _fail(error.format_message().rstrip("."), None, EXIT_USAGE)
    if isinstance(error, InferenceError):
        return _fail(str(error), None, error.exit_code)
    if isinstance(error, SystemExit):
        # click raises this if the reader of standard output is gone: the error cannot be reported.
        return error.code if isinstance(error.code, int) else EXIT_FAILURE
    if is_out_of_memory(error):
        return _fail("out of memory", "take a smaller model, or set engine.kv_cache_memory", EXIT_FAILURE)
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return _fail(f"{_shown(error.filename)}: file name too long", "give a shorter one", EXIT_USAGE)
    if isinstance(error, OSError) and error.strerror:
        return _fail(f"{error.filename or 'the output'}: {error.strerror}", "--traceback shows where", EXIT_FAILURE)
    return _fail(f"{type(error).__name__}: {error}", "--traceback shows where", EXIT_FAILURE)


def _shown(name: Any) -> str:
    """Returns the beginning of a file name that may be very long."""
    text = str(name)
    return text if len(text) <= LONGEST_NAME else f"{text[:LONGEST_NAME]}..."


def _nearest_flag(name: str) -> str | None:
    """Returns a hint for an unknown flag: how to set the key if there is one of that name, else the nearest flag."""
    key = name.lstrip("-").replace("-", "_")
    if key in OTHER_NAMES:
        return f"did you mean '{OTHER_NAMES[key]}'?"
    for section in SECTIONS:
        if key in known_keys(tuple(section.split("."))):
            return f"did you mean '--{section}.{key}'?"
    return did_you_mean(name, flag_names())


def _fail(what: str, hint: str | None, code: int) -> int:
    line = hide_secrets(" ".join((f"{what}; {hint}" if hint else what).split()))
    sys.stderr.write(f"{styled('error:', sys.stderr, fg='red', bold=True)} {line}\n")
    return code


def _leave(code: int, failed: bool = False) -> NoReturn:
    """Exits immediately. A normal exit can wait a second for MindSpore's threads; on a full disk, Python would also try
    to write again and replace the exit code by its own.

    Args:
        failed: whether other ranks may be gone; MindSpore's communication would wait for them.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    # Otherwise MindSpore's scheduler would wait half a minute for this rank and report its exit as a failure.
    if is_worker() and not failed and "mindspore.communication" in sys.modules:
        atexit._run_exitfuncs()
    os._exit(code)
