"""`--run_mode validate`: profiles prompts, checks expectations, and measures drift from other prompts.

Knows configs, files and streams; loads a tokenizer and no weights.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from inference.config import InferenceConfig
from inference.config.schema import ValidateSettings
from inference.errors import EXIT_GATE, ConfigError, InputError, did_you_mean
from inference.evaluate.gate import Verdict
from inference.generation.model import make_encoder
from inference.inputs.prompts import Prompt
from inference.jobs.figures import check_target
from inference.jobs.save_file import replace_file
from inference.models.source import resolve
from inference.terminal.output import say
from inference.validate.drift import drift
from inference.validate.profile import Counted, Profile, profile_of
from inference.validate.report import report
from inference.validate.rows import read_data

DRIFT = tuple(drift(Profile(), Profile()))


def validate(config: InferenceConfig, values: Sequence[str]) -> int:
    """Validate prompts and print the figures to standard output.

    Returns:
        The exit code: 0, or 4 if an expectation is not met.

    Raises:
        InputError: there are no prompts, or a file cannot be read.
        ConfigError: an expectation names an unknown figure.
    """
    settings = config.validation
    check_validation(config, values)
    count_tokens = _token_counter(config)
    if importlib.util.find_spec("datasketch") is None:
        say("near duplicates are not counted: they need the package datasketch (pip install datasketch)")
    profiles = {", ".join(values): profile_of(read_data(values, config.input, settings.label_key), count_tokens)}
    profile = next(iter(profiles.values()))
    if not profile.rows:
        raise InputError("there is no row to validate", "give --predict_data a file with prompts")
    figures, distances = profile.figures(), {}
    if settings.baseline:
        rows = read_data(settings.baseline, config.input, settings.label_key)
        other = profiles[f"baseline: {', '.join(settings.baseline)}"] = profile_of(rows, count_tokens)
        distances = drift(profile, other)
    verdicts = check_expectations({**figures, **distances}, settings)
    _write(settings, profiles, distances, verdicts)
    _print(config, profile, distances, verdicts)
    for verdict in verdicts:
        say(f"{'met' if verdict.passed else 'not met'}: {verdict}")
    return 0 if all(verdict.passed for verdict in verdicts) else EXIT_GATE


def check_validation(config: InferenceConfig, values: Sequence[str]) -> None:
    """Check everything that can be checked before reading rows.

    Raises:
        InferenceError: the first mistake.
    """
    settings = config.validation
    if not values:
        raise InputError("there is nothing to validate", "give --predict_data a file with prompts")
    if not settings.baseline:
        for name in {*settings.min, *settings.max} & set(DRIFT):
            raise ConfigError(f"validation: {name} needs something to compare with", "give validation.baseline")
    for target, key in ((settings.result_file, "result_file"), (settings.report_file, "report_file")):
        if target:
            check_target(Path(target), f"--validation.{key}")


def check_expectations(figures: Mapping[str, float], settings: ValidateSettings) -> list[Verdict]:
    """Check all bounds. The share of a script or label without rows is 0; NaN fails every bound.

    Raises:
        ConfigError: a bound is for an unknown figure.
    """
    bounds = [(name, low, ">=") for name, low in settings.min.items()]
    bounds += [(name, high, "<=") for name, high in settings.max.items()]
    verdicts = []
    for name, bound, sign in bounds:
        is_share = name.startswith(("script_share@", "label_share@"))
        if name not in figures and not is_share:
            hint = did_you_mean(name, figures) or f"known: {', '.join(key for key in figures if '@' not in key)}"
            raise ConfigError(f"validation: there is no figure '{name}'", hint)
        value = figures.get(name, 0.0)
        verdicts.append(Verdict(f"{name} {sign} {bound:g}", value, value >= bound if sign == ">=" else value <= bound))
    return verdicts


def _token_counter(config: InferenceConfig) -> Callable[[int, Prompt], Counted]:
    source = resolve(config)
    encoder = replace(make_encoder(source, source.tokenizer(), source.generation), truncate="left")

    def count(number: int, prompt: Prompt) -> Counted:
        encoded = encoder.encode(number, prompt)
        return len(encoded.ids) + encoded.truncated, encoded.truncated > 0

    return count


def _write(
    settings: ValidateSettings,
    profiles: Mapping[str, Profile],
    distances: Mapping[str, float],
    verdicts: Sequence[Verdict],
) -> None:
    if settings.result_file:
        values = {
            "profiles": {name: profile.as_dict() for name, profile in profiles.items()},
            "drift": distances,
            "expectations": [
                {"expectation": v.threshold, "value": _finite(v.value), "met": v.passed} for v in verdicts
            ],
        }
        data = json.dumps(values, indent=1, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        replace_file(Path(settings.result_file), data)
    if settings.report_file:
        replace_file(Path(settings.report_file), report(profiles, distances, verdicts).encode("utf-8", "replace"))


def _print(
    config: InferenceConfig, profile: Profile, distances: Mapping[str, float], verdicts: Sequence[Verdict]
) -> None:
    """Print a line per figure, or everything as JSON."""
    if config.output.format == "json":
        kept = [{"expectation": v.threshold, "value": _finite(v.value), "met": v.passed} for v in verdicts]
        print(json.dumps({**profile.as_dict(), "drift": distances, "expectations": kept}, ensure_ascii=False))
        return
    figures = {**profile.figures(), **distances}
    width = max(map(len, figures))
    for name, value in figures.items():
        print(
            f"{name.ljust(width)}  {value:,.0f}" if value == round(value, 0) else f"{name.ljust(width)}  {value:,.4g}"
        )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
