"""The command line: flags to config, config to a mode, errors to one line and an exit code.

Knows flags, help and exit codes; all work is in `modes`. Imports nothing heavy, so that `--help` and a mistyped flag
answer at once.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from inference import __version__
from inference.config import InferenceConfig, Override, load_config, parse_override, parse_value
from inference.config.error_messages import known_keys
from inference.config.flags import FLAGS, Flag
from inference.config.presets import find_preset, is_preset, list_presets
from inference.config.secrets import arguments_without_secrets
from inference.errors import EXIT_FAILURE, EXIT_USAGE, ConfigError, InferenceError, did_you_mean, is_out_of_memory
from inference.launcher import RELAUNCH
from inference.parallel.topology import check_topology, is_scheduler, is_worker
from inference.terminal.signals import begin_end, watch

PROGRAM = Path(sys.argv[0]).name
COMPLETION_VARIABLE = "_RUN_INFERENCE_COMPLETE"
SHELLS = ("bash", "zsh", "fish")
GROUPS = ("Run", "Model", "Device", "Generation", "Output", "Evaluation", "Information")
MULTIPLE = ("--predict_data", "--options", *(flag.name for flag in FLAGS if flag.multiple))
OVERWRITE = ("--overwrite", "--force")
# What `--section.key value` becomes.
KEY = "--key"
# Where a key is looked for that is given as a flag, although it has none.
SECTIONS = ("generation_config", "engine", "output", "context", "model.model_config", "processor.tokenizer")
EXAMPLES = """
Examples:
  python run_inference.py --config configs/demo/predict_demo.yaml --predict_data 'Once upon a time'
  python run_inference.py --config configs/llama2/predict_llama2_7b.yaml --load_checkpoint path/to/hf_dir \\
      --predict_data prompts.jsonl --predict_batch_size 8 --save_file out.jsonl
  python run_inference.py --config my.yaml --predict_data - --model.model_config.seq_length 1024
"""


class Help(click.Command):
    """`--help` in groups, examples below; prompts that belong to no flag are refused with a hint."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        own, context.params["beam"] = apart(args)
        super().parse_args(context, own)
        if context.args:
            raise click.UsageError(f"'{context.args[0]}' belongs to no flag; a prompt goes after --predict_data")
        return context.args

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(context):
            row = parameter.get_help_record(context)
            if row:
                groups.setdefault(getattr(parameter, "group", GROUPS[-1]), []).append(row)
        for group in GROUPS:
            with formatter.section(group):
                formatter.write_dl(groups[group])

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write(EXAMPLES)


class GroupedOption(click.Option):
    """An option with the heading that `--help` shows it under."""

    def __init__(self, *args: Any, group: str, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.group = group


class Offered(click.Choice):
    """Values that the shell completes. The config layer refuses all others, and says more about them."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value


def _config_option(flag: Flag) -> GroupedOption:
    """The option of a flag that sets a config key. Its value stays text: the config layer gives it its type."""
    kind = "True|False" if flag.kind is bool else flag.kind.__name__.upper()
    return GroupedOption(
        [flag.name],
        group=flag.group,
        type=Offered(flag.choices) if flag.choices else str,
        multiple=flag.multiple,
        metavar=None if flag.choices else {"STR": "TEXT"}.get(kind, kind),
        # A bare --chat is --chat True.
        **({"is_flag": False, "flag_value": "True"} if flag.kind is bool else {}),
        help=f"{flag.help}{_default_of(flag)}",
        hidden=not flag.acted_on,
    )


def _default_of(flag: Flag) -> str:
    """The default of its key, for --help."""
    value: Any = InferenceConfig()
    for name in flag.path.split("."):
        value = getattr(value, name, None)
    return "" if value in (None, (), "") else f" [default: {value}]"


def _own_options() -> list[GroupedOption]:
    run, output, information = "Run", "Output", "Information"
    return [
        GroupedOption(
            ["--config"], group=run, metavar="YAML", help="Model config: a file, or a preset's name (--list_models)."
        ),
        GroupedOption(
            ["--predict_data"],
            group=run,
            multiple=True,
            metavar="TEXT|FILE|-",
            help="Prompts: texts; .txt (a prompt a line), .jsonl, .csv or .parquet files; - for standard input.",
        ),
        GroupedOption(
            ["--options"], group=run, multiple=True, metavar="KEY=VALUE", help="Any key of the config, dotted."
        ),
        GroupedOption([KEY], group=run, multiple=True, hidden=True),
        GroupedOption([*OVERWRITE, "overwrite"], group=output, is_flag=True, help="Replace a save file that exists."),
        GroupedOption(
            ["--resume"], group=output, is_flag=True, help="Go on with a save file that an earlier run left."
        ),
        GroupedOption(
            ["--retry_failed", "--retry-failed"],
            group=output,
            is_flag=True,
            help="Go on with a save file, and run the rows again that failed.",
        ),
        GroupedOption(["--no_echo", "--no-echo"], group=output, is_flag=True, help="Leave prompts out of records."),
        GroupedOption(
            ["--no-stream", "--no_stream"], group=output, is_flag=True, help="Write each answer when it is complete."
        ),
        GroupedOption(["--traceback"], group=output, is_flag=True, help="Show where an error came from."),
        GroupedOption(["--check"], group=information, is_flag=True, help="Check everything, load nothing, and stop."),
        GroupedOption(["--print_config"], group=information, is_flag=True, help="Print the merged config and stop."),
        GroupedOption(["--list_models"], group=information, is_flag=True, help="List the presets and stop."),
        GroupedOption(
            ["--show_completion"],
            group=information,
            type=click.Choice(SHELLS),
            help="Print the shell's completion script and stop.",
        ),
        GroupedOption(["--version"], group=information, is_flag=True, help="Print the version and stop."),
    ]


def build_command() -> click.Command:
    """The click command, its options from the flag table."""
    options: list[click.Parameter] = [*_own_options(), *(_config_option(flag) for flag in FLAGS)]
    return Help(
        PROGRAM,
        params=options,
        callback=_run,
        help="Runs a language model as a YAML config says. Answers go to standard output, all else to stderr. "
        "Any key of the config can be given as --section.key VALUE. The command line outranks the YAML, the YAML the "
        "model's own files, and these the defaults.",
        options_metavar="--config YAML --predict_data TEXT [OPTIONS]",
        context_settings={
            "max_content_width": 120,
            "help_option_names": ["-h", "--help"],
            "allow_extra_args": True,
        },
    )


def _run(**given: Any) -> int:
    if given["version"]:
        click.echo(f"mindspore-inference {__version__}")
    elif given["list_models"]:
        _list_models()
    elif given["show_completion"]:
        _show_completion(given["show_completion"])
    else:
        return _with_config(given)
    return 0


def _with_config(given: dict[str, Any]) -> int:
    if not given["config"]:
        raise click.UsageError("--config is missing; give a YAML file or a preset's name (--list_models)")
    config = load_config(_config_file(given["config"]), overrides=_overrides(given))
    if given["beam"] and config.run_mode != "pipeline":
        raise click.exceptions.NoSuchOption(given["beam"][0].partition("=")[0])
    if given["print_config"]:
        from inference.modes.ends import ends_as_comments

        click.echo("\n".join([config.to_yaml().rstrip("\n"), *ends_as_comments(config)]))
        return 0
    return _act(config, given)


def _config_file(name: str) -> Path:
    """A file, or the preset of that name; a plain word that is neither is taken for a preset's name."""
    path = Path(name)
    is_word = path.name == name and not path.suffix and not path.exists()
    return find_preset(name) if is_word or (is_preset(name) and not path.is_file()) else path


def _act(config: InferenceConfig, given: dict[str, Any]) -> int:
    # Here and not above: these import tokenizers and models, which --help need not wait for.
    from inference import modes
    from inference.terminal.output import count, say

    values = list(given["predict_data"] or config.input_data or ())
    goes_on = given["resume"] or given["retry_failed"]
    _check_going_on(config, given)
    if given["check"]:
        other = modes.check_other(config, values, given["beam"], given["overwrite"] or goes_on)
        if other is not None:
            click.echo(other)
            return 0
        ready, number = modes.check(config, values, given["overwrite"] or goes_on)
        _say_checked(config, ready, count(number, "prompt"))
        return 0
    if not check_topology(config).is_root and config.run_mode != "convert":
        modes.assist(config)
        return 0
    if config.unused_keys:
        say(f"without effect here: {count(len(config.unused_keys), 'key')} of the config (--check lists them)")
    if config.run_mode == "convert":
        modes.convert(config, given["overwrite"])
    elif config.run_mode == "evaluate":
        return modes.evaluate(config, values)
    elif config.run_mode == "serve":
        return modes.serve(config)
    else:
        again = resume_command(click.get_current_context().obj)
        how = {"overwrite": given["overwrite"], "resume": goes_on, "again": again}
        if config.run_mode == "pipeline":
            return modes.pipeline(config, values, given["beam"], **how)
        return modes.predict(config, values, retry_failed=given["retry_failed"], **how)
    return 0


def _check_going_on(config: InferenceConfig, given: dict[str, Any]) -> None:
    """Refuses flags that a run mode would pass over."""
    for flag, modes in (("resume", ("predict", "pipeline")), ("retry_failed", ("predict",))):
        if given[flag] and config.run_mode not in modes:
            raise ConfigError(f"--{flag} is for run_mode {' and '.join(modes)}, not {config.run_mode}", "leave it out")


def resume_command(arguments: Sequence[str]) -> str:
    """The command line that goes on with a run of these arguments, through the launcher where that started it."""
    program = ["python", sys.argv[0]] if sys.argv[0].endswith(".py") else [PROGRAM]
    kept = [argument for argument in arguments if argument not in (*OVERWRITE, "--resume")]
    line = shlex.join([*program, *arguments_without_secrets(kept), "--resume"])
    relaunch = os.environ.get(RELAUNCH)
    return relaunch.replace("{}", shlex.quote(line)) if relaunch else line


def _say_checked(config: InferenceConfig, ready: Any, prompts: str) -> None:
    model = ready.source.model
    click.echo(
        f"{ready.source.name}: {model.architecture}, {model.num_parameters / 1e6:,.1f} M parameters, "
        f"context {model.context_length}, weights {ready.source.checkpoint or 'random'}; {prompts}; ok"
    )
    for key, where in config.unused_keys:
        click.echo(f"no effect: {key} ({where})")


def _overrides(given: dict[str, Any]) -> list[Override]:
    """In the order of the flag table, then --options and dotted flags, which name keys exactly."""
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


def _list_models() -> None:
    rows = [
        (preset.name, preset.family, _billions(preset.parameters), preset.hub_id or "in this package")
        for preset in list_presets()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _billions(parameters: int | None) -> str:
    return "-" if parameters is None else f"{parameters / 1e9:.2f} B"


def _show_completion(shell: str) -> None:
    from click.shell_completion import get_completion_class

    completion = get_completion_class(shell)
    assert completion is not None
    click.echo(completion(build_command(), {}, PROGRAM, COMPLETION_VARIABLE).source())


def spread(arguments: Sequence[str]) -> list[str]:
    """MindFormers' flags take several values (`--predict_data a b`); click's are repeated. Dotted flags are options.

    `--predict_data a b` becomes `--predict_data a --predict_data b`, `--a.b c` becomes `--key a.b=c`.

    Raises:
        click.UsageError: a flag without its value.
    """
    out: list[str] = []
    several: str | None = None
    waiting = iter(arguments)
    for argument in waiting:
        name, equals, value = argument.partition("=")
        if name.startswith("--") and "." in name:
            several = None
            out += [KEY, f"{name.removeprefix('--')}={value if equals else _next_value(name, waiting)}"]
        elif name in MULTIPLE:
            several = name
            out += [name, value if equals else _next_value(name, waiting)]
        elif argument.startswith("--") or argument == "-h":
            several = None
            out.append(argument)
        else:
            out += [several, argument] if several else [argument]
    return out


def _next_value(flag: str, waiting: Iterator[str]) -> str:
    value = next(waiting, None)
    if value is None or value in _flag_names():
        raise click.UsageError(f"{flag} needs a value")
    return value


def apart(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Our arguments, and those that may be Beam's: flags that we do not have, each with the words after it."""
    known = {name for option in build_command().params for name in option.opts} | {"-h", "--help"}
    own: list[str] = []
    other: list[str] = []
    chosen = own
    for argument in arguments:
        # A value that begins with a dash is that of the flag before it.
        if argument.startswith("--") and len(argument) > 2 and not (chosen is own and _wants_value(own)):
            chosen = own if argument.partition("=")[0] in known else other
        chosen.append(argument)
    return own, other


def _wants_value(own: Sequence[str]) -> bool:
    """Whether the last argument is a flag that takes the next one, whatever it looks like."""
    return bool(own) and own[-1] in (*MULTIPLE, KEY)


def _flag_names() -> list[str]:
    return [name for option in build_command().params for name in option.opts if name != KEY]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line and ends the process: 0 done, 1 a failure, 2 a mistake of the user's, 3 rows
    that failed, 4 a threshold that was not kept, 128 + number of the signal that ended it (130 for Ctrl-C).
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
        code = build_command().main(
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
    """Files and pipes get UTF-8, whatever the locale; a terminal keeps its encoding, and what that cannot show is `?`.

    A shell's `>&-` leaves None in the place of a stream: what is written to it goes nowhere.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        encoding = sys.stdout.encoding if sys.stdout.isatty() else "utf-8"
        sys.stdout.reconfigure(encoding=encoding, errors="replace")


def _report(error: BaseException) -> int:
    """Says what went wrong in one line; the exit code."""
    if isinstance(error, click.exceptions.NoSuchOption):
        return _fail(f"there is no flag {error.option_name}", _nearest_flag(error.option_name), EXIT_USAGE)
    if isinstance(error, click.ClickException):
        return _fail(error.format_message().rstrip("."), None, EXIT_USAGE)
    if isinstance(error, InferenceError):
        return _fail(str(error), None, error.exit_code)
    if isinstance(error, SystemExit):
        # click's own answer to a reader of standard output that has gone: nobody is left to tell.
        return error.code if isinstance(error.code, int) else EXIT_FAILURE
    if is_out_of_memory(error):
        return _fail("out of memory", "take a smaller model, or set engine.kv_cache_memory", EXIT_FAILURE)
    if isinstance(error, OSError) and error.strerror:
        return _fail(f"{error.filename or 'the output'}: {error.strerror}", "--traceback shows where", EXIT_FAILURE)
    return _fail(f"{type(error).__name__}: {error}", "--traceback shows where", EXIT_FAILURE)


def _nearest_flag(name: str) -> str | None:
    """For a key that has no flag of its own, how to give it; otherwise the nearest flag."""
    key = name.lstrip("-")
    for section in SECTIONS:
        if key in known_keys(tuple(section.split("."))):
            return f"did you mean '--{section}.{key}'?"
    return did_you_mean(name, _flag_names())


def _fail(what: str, hint: str | None, code: int) -> int:
    line = " ".join((f"{what}; {hint}" if hint else what).split())
    sys.stderr.write(f"error: {line}\n")
    return code


def _leave(code: int, failed: bool = False) -> NoReturn:
    """Exits at once: MindSpore's threads can take a second to end, and Python would try a full disk again, and give
    its own exit code for that.

    Args:
        failed: other ranks may be gone, whom MindSpore's communication would wait for.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    # Otherwise MindSpore's scheduler would look for this rank for half a minute, and call its end a failure.
    if is_worker() and not failed and "mindspore.communication" in sys.modules:
        atexit._run_exitfuncs()
    os._exit(code)
