"""Checks Beam's options on our command line against those that Beam registers, and finds the runner.

Knows Beam's option classes; knows nothing about pipelines.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions, TypeOptions, WorkerOptions
from apache_beam.runners.runner import PipelineRunner, create_runner

from inference.errors import ConfigError, InputError, did_you_mean

LOCAL = ("DirectRunner", "SwitchingDirectRunner")
LOG_LEVEL = "--default_sdk_harness_log_level"


def pipeline_options(given: Sequence[str], unchecked: Sequence[str], known_flags: Sequence[str]) -> PipelineOptions:
    """Parse Beam's options.

    Args:
        given: the arguments that are not ours; each must be an option of Beam.
        unchecked: options of a runner that Beam itself does not register.
        known_flags: our flags, for hints.

    Raises:
        ConfigError: an option is unknown or lacks its value.
    """
    known = _registered()
    for flag in (word.partition("=")[0] for word in given if word.startswith("--")):
        if flag not in known:
            hint = did_you_mean(flag, [*known_flags, *known])
            raise ConfigError(
                f"there is no flag {flag}, here or in Beam",
                hint or "put options that only the runner knows into pipeline.runner_options",
            )
    _check_values(given)
    options = PipelineOptions([*given, *unchecked])
    if runner_name(options) in LOCAL:
        # This option keeps the local runner in this process. Without it, the runner would first try to download the
        # binary of another runner. No trigger is used here.
        options.view_as(TypeOptions).allow_unsafe_triggers = True
        # Its workers write to this terminal.
        if not any(word.partition("=")[0] == LOG_LEVEL for word in given):
            options.view_as(WorkerOptions).default_sdk_harness_log_level = "WARNING"
    return options


def runner_name(options: PipelineOptions) -> str:
    return str(options.view_as(StandardOptions).runner or LOCAL[0])


def find_runner(options: PipelineOptions) -> PipelineRunner:
    """Find the runner.

    Raises:
        InputError: no runner has that name, or it is not installed.
    """
    name = runner_name(options)
    try:
        return create_runner(name)
    except (ValueError, ImportError, AttributeError) as error:
        known = [name for name in _known_runners() if name.endswith("Runner")]
        hint = did_you_mean(name, known) or f"known: {', '.join(known)}"
        raise InputError(f"--runner: there is no runner '{name}' ({str(error).splitlines()[0]})", hint) from error


def _known_runners() -> tuple[str, ...]:
    from apache_beam.runners import runner

    return tuple(getattr(runner, "StandardOptions", StandardOptions).KNOWN_RUNNER_NAMES)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for kind in {str(kind): kind for kind in PipelineOptions.__subclasses__()}.values():
        kind._add_argparse_args(parser)
    return parser


def _registered() -> list[str]:
    return [name for action in _parser()._actions for name in action.option_strings if name.startswith("--")]


def _check_values(given: Sequence[str]) -> None:
    parser = _parser()

    def fail(message: str) -> None:
        raise ConfigError(f"an option of Beam: {message}")

    parser.error = fail  # type: ignore[assignment,method-assign]
    try:
        _, rest = parser.parse_known_args(list(given))
    except argparse.ArgumentError as error:
        raise ConfigError(f"an option of Beam: {error}") from error
    if rest:
        raise ConfigError(f"'{rest[0]}' does not belong to a flag", "put prompts after --predict_data")
