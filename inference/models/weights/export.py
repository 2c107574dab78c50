"""Writes a model in this project's own format: matrices packed and fused exactly as they are in memory.

Such a directory is mapped instead of loaded. It holds `model.safetensors` with the network's parameters (packed ones as
U8, in the layout of `kernels/cpp/formats.h`), the model's config.json with the added key `packed_weights`, and its
tokenizer files. Peak memory is that of one parameter.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from inference.checkpoint.tensor import StoredTensor
from inference.errors import ConfigError, InferenceError, InputError
from inference.kernels.formats import Format, MixedFormat, WeightFormat
from inference.models.weights.loading import Destination, PackInto
from inference.models.weights.sharding import PACKED, Pairs, Shard
from inference.models.weights.weight_formats import formats_of, layout_bytes, memory_layout
from inference.tokenizer.gguf_tokenizer import write_gguf_tokenizer

PACKED_KEY = "packed_weights"
WEIGHTS_NAME = "model.safetensors"
# Data begins at a page boundary, because the file is mapped and used in place.
PAGE = 4096
# Our names of types -> those of the safetensors format.
TYPE_NAMES = {"float32": "F32", "uint8": "U8"}
# Files to copy from the model's directory besides weights and config.
COMPANIONS = (
    "tokenizer*",
    "spiece.model",
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
)


def convert(
    parts: Sequence[tuple[Shard, Pairs]],
    own_config: dict[str, Any],
    directory: Path | None,
    target: Path,
    weight_format: WeightFormat,
    pack_into: PackInto,
    *,
    force: bool = False,
    progress: Callable[[StoredTensor], None] | None = None,
) -> None:
    """Writes `target` completely or not at all.

    Args:
        parts: each rank's part of the model, with its tensors and their places. If there are several parts, each is
            written to its own directory, rank_0 and so on.
        own_config: the contents of the model's config.json.
        directory: the directory of its tokenizer files, or a GGUF file with a tokenizer; None for no tokenizer.
        force: replace a target that exists.

    Raises:
        InputError: the target exists.
        InferenceError: it cannot be written.
    """
    check_target(target, force)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
            made = Path(scratch) / target.name
            made.mkdir()
            for shard, pairs in parts:
                folder = made if len(parts) == 1 else made / f"rank_{shard.rank}"
                folder.mkdir(exist_ok=True)
                with (folder / WEIGHTS_NAME).open("wb") as file:
                    _write_weights(file, pairs, shard, weight_format, pack_into, progress)
            text = json.dumps({**own_config, PACKED_KEY: _stated(weight_format)}, indent=2)
            (made / "config.json").write_text(text + "\n", encoding="utf-8")
            _copy_companions(directory, made)
            if target.exists():
                target.rename(Path(scratch) / "replaced")
            made.rename(target)
    except OSError as error:
        raise InferenceError(f"{target} cannot be written: {error.strerror}") from error


def _stated(weight_format: WeightFormat) -> dict[str, Any]:
    """Returns the entry for a format in config.json; `packed_format` reads it."""
    stated: dict[str, Any] = {"weight_dtype": weight_format.value}
    if isinstance(weight_format, MixedFormat):
        stated["formats"] = {name: form.value for name, form in weight_format.by_parameter.items()}
    return stated


def packed_format(values: Mapping[str, Any], where: str) -> WeightFormat | None:
    """Returns the weight format that a config.json states; None if `convert` did not pack the weights.

    Args:
        values: the keys of config.json.
        where: its name in errors.

    Raises:
        ConfigError: the entry is damaged.
    """
    packed = values.get(PACKED_KEY)
    if packed is None:
        return None
    try:
        if "formats" in packed:
            return MixedFormat({str(name): Format(form) for name, form in packed["formats"].items()})
        return Format(packed["weight_dtype"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{where}: {PACKED_KEY} is damaged: {packed!r}", "convert the model again") from error


def check_target(target: Path, force: bool) -> None:
    """Raises InputError if the target exists, unless `force` is set."""
    if target.exists() and not force:
        raise InputError(f"{target} exists", "give another --output_dir, or --force to replace it")


def _write_weights(
    file: BinaryIO,
    pairs: Pairs,
    shard: Shard,
    weight_format: WeightFormat,
    pack_into: PackInto,
    progress: Callable[[StoredTensor], None] | None,
) -> None:
    shapes, formats = shard.parameter_shapes(), formats_of(shard.model, weight_format)
    layouts = {name: memory_layout(shape, formats[name]) for name, shape in shapes.items()}
    # Write matrices first: each one fills whole cache lines, so every matrix starts at a cache line.
    layouts = dict(sorted(layouts.items(), key=lambda item: item[1][0] != PACKED))
    header, offset = {}, 0
    for name, layout in layouts.items():
        end = offset + layout_bytes(layout)
        header[name] = {"dtype": TYPE_NAMES[layout[0]], "shape": layout[1], "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % PAGE)
    file.write(len(text).to_bytes(8, "little") + text)
    tensors: dict[str, Pairs] = {}
    for pair in pairs:
        tensors.setdefault(pair[1].parameter, []).append(pair)
    for name, (dtype, shape) in layouts.items():
        array = np.zeros(shape, dtype)
        memory = formats[name] if dtype == PACKED else None
        destination = Destination(array, memory, formats[name], pack_into)
        for tensor, place in tensors[name]:
            destination.write(tensor, place)
            if progress:
                progress(tensor)
        file.write(array.data)


def _copy_companions(directory: Path | None, made: Path) -> None:
    if directory is not None and directory.is_file():
        write_gguf_tokenizer(directory, made)
        return
    for pattern in COMPANIONS if directory else ():
        assert directory is not None
        for path in directory.glob(pattern):
            if path.is_file():
                shutil.copyfile(path, made / path.name)
