"""`--run_mode convert`: writes a checkpoint with packed weights, whole or sharded by rank."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from inference.api.backend import check_backend
from inference.checkpoint.gguf_names import GGUF_KEYS
from inference.checkpoint.open import GGUF_SUFFIX
from inference.config import InferenceConfig
from inference.context import check_device
from inference.errors import ConfigError, TokenizerError
from inference.generation.build import say_what_becomes_of, weight_format_of
from inference.kernels.formats import WeightFormat
from inference.models.architecture.registry import ARCHITECTURES, model_type_of
from inference.models.source import ModelSource, is_gguf, resolve
from inference.models.weights.export import check_target as check_converted
from inference.models.weights.export import convert as write_converted
from inference.models.weights.loading import Pairs
from inference.models.weights.sharding import Shard
from inference.modes.call import Call
from inference.modes.check import check_run
from inference.terminal.output import load_progress, say
from inference.tokenizer.gguf_tokenizer import read_gguf_tokenizer


def run(call: Call) -> int:
    convert(call.config, call.overwrite)
    return 0


def check(call: Call) -> str:
    description = check_run(call)
    _plan(call.config, call.overwrite)
    return description


@dataclass(frozen=True)
class _Plan:
    """What to convert, and where to.

    Args:
        parts: each rank's part of the model, with its tensors.
    """

    source: ModelSource
    parts: list[tuple[Shard, Pairs]]
    weight_format: WeightFormat
    target: Path


def _plan(config: InferenceConfig, force: bool) -> _Plan:
    """Finds every mistake that can be found before weights are packed."""
    source = resolve(config)
    parts = [(source.shard(rank), source.pairs(rank) or []) for rank in range(source.ranks)]
    pairs = [pair for _, part in parts for pair in part]
    if not pairs or source.packed is not None:
        raise ConfigError("there is nothing to convert: the weights are random or packed already", "give a checkpoint")
    weight_format = weight_format_of(source, pairs)
    directory = Path(config.output_dir)
    target = directory / f"{source.name.removesuffix(GGUF_SUFFIX)}-{weight_format.value}"
    check_converted(target, force)
    existing = next(place for place in (directory, *directory.absolute().parents) if place.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        problem = "permission denied" if existing.is_dir() else f"{existing} is a file"
        raise ConfigError(f"{target} cannot be created: {problem}", "give another --output_dir")
    return _Plan(source, parts, weight_format, target)


def convert(config: InferenceConfig, force: bool = False) -> Path:
    """Writes the model in `engine.weight_dtype` to `<output_dir>/<model>-<weight_dtype>` and prints the path."""
    from inference.kernels.build import KernelBuildError

    check_device(config)
    check_backend(config)
    plan = _plan(config, force)
    source, pairs = plan.source, [pair for _, part in plan.parts for pair in part]
    say_what_becomes_of(pairs, plan.weight_format, say)
    try:
        from inference.kernels.library import pack_into, set_threads

        set_threads(config.engine.threads)
    except KernelBuildError as error:
        say(f"{error}: the slower packer is used")
        from inference.kernels.formats import pack_into
    own = {key: value for key, value in source.own_config.items() if key not in GGUF_KEYS}
    named = own.get("architectures") or [None]
    if "model_type" not in own and named[0] in ARCHITECTURES:
        own["model_type"] = model_type_of(named[0])
    write_converted(
        plan.parts,
        own,
        _with_tokenizer(source),
        plan.target,
        plan.weight_format,
        pack_into,
        force=force,
        progress=load_progress(pairs),
    )
    print(plan.target)
    return plan.target


def _with_tokenizer(source: ModelSource) -> Path | None:
    """Returns where to get a converted model's tokenizer; reports and returns None if a GGUF file's cannot be read."""
    if source.directory is not None and is_gguf(source.directory):
        try:
            read_gguf_tokenizer(source.directory, {})
        except TokenizerError as error:
            say(f"{error}; no tokenizer is written beside the weights")
            return None
    return source.directory
