"""The options of the command line: groups, help, and the conversion of MindFormers' syntax to click's.

Knows flags and their text; knows nothing about what they do.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import click

from inference.config import InferenceConfig
from inference.config.flags import FLAGS, Flag
from inference.config.presets import is_preset
from inference.config.run_modes import RUN_MODES

_CALLED = Path(sys.argv[0]).name
PROGRAM = "python -m inference" if _CALLED == "__main__.py" else _CALLED
COMPLETION_VARIABLE = "_RUN_INFERENCE_COMPLETE"
SHELLS = ("bash", "zsh", "fish")
GROUPS = ("Run", "Model", "Device", "Generation", "Output", "Evaluation", "Information")
MULTIPLE = ("--predict_data", "--options", *(flag.name for flag in FLAGS if flag.multiple))
OVERWRITE = ("--overwrite", "--force")
_LETTER = re.compile("-[A-Za-z]")
# The option that `--section.key value` is rewritten to.
KEY = "--key"
ALL_GROUPS = "all"
HELP_GROUP = "inference.cli.help_group"
EXAMPLES = """
Examples:
  python run_inference.py --config configs/demo/predict_demo.yaml --predict_data 'Once upon a time'
  python run_inference.py --config configs/llama2/predict_llama2_7b.yaml --load_checkpoint path/to/hf_dir \\
      --predict_data prompts.jsonl --predict_batch_size 8 --save_file out.jsonl
  python run_inference.py --config my.yaml --predict_data - --model.model_config.seq_length 1024
"""


class Help(click.Command):
    """The command: `--help` shows one group of flags, `--help-all` all of them; prompts without a flag are rejected."""

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        return None

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        own, context.params["beam"] = apart(args)
        super().parse_args(context, own)
        if context.args:
            raise click.UsageError(_misplaced(context.args[0]))
        return context.args

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(context):
            row = parameter.get_help_record(context)
            if row:
                groups.setdefault(getattr(parameter, "group", GROUPS[-1]), []).append(row)
        asked = context.meta.get(HELP_GROUP, GROUPS[0])
        for group in GROUPS if asked == ALL_GROUPS else (asked,):
            with formatter.section(group):
                formatter.write_dl(groups[group])

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        asked = context.meta.get(HELP_GROUP, GROUPS[0])
        if asked in (ALL_GROUPS, GROUPS[0]):
            formatter.write(EXAMPLES)
        formatter.write("\nA flag without a value is a switch: --chat turns it on, --chat False off.\n")
        if asked != ALL_GROUPS:
            others = ", ".join(group.lower() for group in GROUPS if group != asked)
            formatter.write(f"More flags: --help GROUP ({others}), or --help-all for every flag.\n")


def _misplaced(word: str) -> str:
    if word == "help":
        hint = "--help shows the flags"
    elif word in RUN_MODES:
        hint = f"give --run_mode {word}"
    elif is_preset(word):
        hint = f"give --model {word}; a prompt goes after --predict_data"
    else:
        hint = "a prompt goes after --predict_data"
    return f"'{word}' belongs to no flag; {hint}"


def _show_help(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value is None or value is False or context.resilient_parsing:
        return
    group = ALL_GROUPS if value is True else str(value).capitalize()
    if group not in (*GROUPS, ALL_GROUPS):
        known = ", ".join(name.lower() for name in GROUPS)
        raise click.UsageError(f"--help: there is no group of flags '{value}'; there are {known}")
    context.meta[HELP_GROUP] = group
    click.echo(context.get_help())
    context.exit()


class GroupedOption(click.Option):
    """An option with its heading in `--help`.

    Args:
        is_switch: whether the flag alone means True. Its value is optional, so help does not show one.
    """

    def __init__(self, *args: Any, group: str, is_switch: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.group, self._is_switch = group, is_switch

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        record = super().get_help_record(ctx)
        return (record[0].split()[0], record[1]) if record and self._is_switch else record


class Offered(click.Choice):
    """Values for shell completion. Accepts any value: the config layer rejects others with a better message."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value


def _config_option(flag: Flag) -> GroupedOption:
    """Makes the option of a flag that sets a config key. Its value stays text: the config layer converts it."""
    kind = flag.kind.__name__.upper()
    return GroupedOption(
        [flag.name],
        group=flag.group,
        type=Offered(flag.choices) if flag.choices else str,
        multiple=flag.multiple,
        metavar=None if flag.choices else {"STR": "TEXT"}.get(kind, kind),
        is_switch=flag.kind is bool,
        # A bare --chat means --chat True.
        **({"is_flag": False, "flag_value": "True"} if flag.kind is bool else {}),
        help=f"{flag.help}{_default_of(flag)}",
        hidden=not flag.acted_on,
    )


def _default_of(flag: Flag) -> str:
    """Returns the default of the flag's key, for --help."""
    value: Any = InferenceConfig()
    for name in flag.path.split("."):
        value = getattr(value, name, None)
    if isinstance(value, bool):
        value = "on" if value else "off"
    return "" if value in (None, (), "", {}) else f" [default: {value}]"


def _own_options() -> list[GroupedOption]:
    run, output, information = "Run", "Output", "Information"
    return [
        GroupedOption(
            ["--config"], group=run, metavar="YAML", help="Model config: a file, or a preset's name (--list_models)."
        ),
        GroupedOption(
            ["--model"], group=run, metavar="MODEL", help="A model's directory, GGUF file, preset or Hugging Face name."
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
        GroupedOption(
            ["-h", "--help"],
            group=information,
            metavar="[GROUP]",
            is_flag=False,
            flag_value=GROUPS[0],
            is_eager=True,
            expose_value=False,
            callback=_show_help,
            help=f"Show the flags of a group: {', '.join(name.lower() for name in GROUPS)}.",
        ),
        GroupedOption(
            ["--help-all", "--help_all"],
            group=information,
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_show_help,
            help="Show the flags of every group.",
        ),
        GroupedOption(["--version"], group=information, is_flag=True, help="Print the version and stop."),
    ]


@cache
def parameters() -> tuple[GroupedOption, ...]:
    """Returns all options: those of the command line itself, then one for each row of the flag table."""
    return (*_own_options(), *(_config_option(flag) for flag in FLAGS))


@cache
def build_command(callback: Callable[..., int]) -> click.Command:
    """Builds the click command.

    Args:
        callback: takes the options by name, and `beam`, the flags that we do not have; returns the exit code.
    """
    return Help(
        PROGRAM,
        params=list(parameters()),
        callback=callback,
        help="Runs a language model from a YAML config. Answers go to standard output, all else to stderr. "
        "Any key of the config can be given as --section.key VALUE. The command line outranks the YAML, the YAML the "
        "model's own files, and these the defaults.",
        options_metavar="--config YAML --predict_data TEXT [OPTIONS]",
        context_settings={
            "max_content_width": 120,
            "allow_extra_args": True,
        },
    )


def spread(arguments: Sequence[str]) -> list[str]:
    """Rewrites MindFormers' syntax to click's.

    MindFormers' flags take several values, click's are repeated: `--predict_data a b` becomes
    `--predict_data a --predict_data b`. Dotted flags set a config key: `--a.b c` becomes `--key a.b=c`.

    Raises:
        click.UsageError: a flag has no value.
    """
    out: list[str] = []
    several: str | None = None
    waiting = iter(map(_underscored, arguments))
    for argument in waiting:
        name, equals, value = argument.partition("=")
        if name.startswith("--") and "." in name:
            several = None
            out += [KEY, f"{name.removeprefix('--')}={value if equals else _next_value(name, waiting)}"]
        elif name in MULTIPLE:
            several = name
            out += [name, value if equals else _next_value(name, waiting)]
        # One letter after a dash is not a further value: other programs have such flags, and `-p text` is not a prompt.
        elif argument.startswith("--") or _LETTER.fullmatch(argument):
            several = None
            out.append(argument)
        else:
            out += [several, argument] if several else [argument]
    return out


def _underscored(argument: str) -> str:
    """Rewrites one of our flags that was typed with hyphens to its name with underscores."""
    name, equals, value = argument.partition("=")
    own = name.replace("-", "_").replace("__", "--", 1)
    return (
        f"{own}{equals}{value}"
        if name.startswith("--") and name not in flag_names() and own in flag_names()
        else argument
    )


def _next_value(flag: str, waiting: Iterator[str]) -> str:
    value = next(waiting, None)
    if value is None or value in flag_names():
        raise click.UsageError(f"{flag} needs a value")
    return value


def apart(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits arguments into ours and those for Beam: flags that we do not have, each with the words after it."""
    known = {*flag_names(), KEY}
    own: list[str] = []
    other: list[str] = []
    chosen = own
    for argument in arguments:
        # A value may begin with dashes: it belongs to the flag before it.
        if argument.startswith("--") and len(argument) > 2 and not (chosen is own and _wants_value(own)):
            chosen = own if argument.partition("=")[0] in known else other
        chosen.append(argument)
    return own, other


def _wants_value(own: Sequence[str]) -> bool:
    """Returns whether the last argument is a flag that takes the next argument, whatever it looks like."""
    return bool(own) and own[-1] in (*MULTIPLE, KEY)


@cache
def flag_names() -> tuple[str, ...]:
    """Returns every spelling of every flag."""
    return tuple(name for option in parameters() for name in option.opts if name != KEY)
