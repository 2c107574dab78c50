"""Open a checkpoint on disk: find the files that make it up and the tensors that they hold.

Knows the file formats by their suffixes; knows nothing about models. Opening reads only the headers. It unpickles
nothing and runs no code. Never imports mindspore.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from inference.checkpoint.gguf_tensors import read_gguf_tensors
from inference.checkpoint.mindspore_ckpt import read_ckpt_header
from inference.checkpoint.safetensors import read_safetensors_header
from inference.checkpoint.tensor import FLOATS, ITEM_SIZES, Checkpoint
from inference.errors import CheckpointError, ModelNotFoundError
from inference.files.read import exists, read_json_object
from inference.files.values import is_text, shown

GGUF_SUFFIX = ".gguf"
INDEX_NAME = "model.safetensors.index.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".npy", ".npz")


def open_checkpoint(
    path: Path,
    preferred: str | None = None,
    quantized: bool = False,
    ignored: Callable[[str], bool] = lambda name: False,
) -> Checkpoint:
    """Return the tensors of a `.safetensors`, `.ckpt` or `.gguf` file, or of a directory of the first two.

    Args:
        preferred: `ckpt` chooses the .ckpt file of a directory that also has safetensors.
        quantized: also accept tensors of integers and 8-bit floats, for `quantized.dequantized`.
        ignored: tells whether to skip a tensor by its name, whatever its type.

    Raises:
        ModelNotFoundError: the path does not exist, or holds no weights.
        CheckpointError: a file is damaged, a type is not supported, or a tensor is stored twice.
    """
    if path.suffix == GGUF_SUFFIX and not path.is_dir():
        return read_gguf_tensors(path)
    tensors: Checkpoint = {}
    accepted = ITEM_SIZES if quantized else FLOATS
    for file in checkpoint_files(path, preferred):
        is_ckpt = file.suffix == ".ckpt"
        found = read_ckpt_header(file, ignored) if is_ckpt else read_safetensors_header(file, accepted, ignored)
        for tensor in found:
            if tensor.name in tensors:
                raise CheckpointError(f"{file}: tensor '{tensor.name}' is in another file of this checkpoint too")
            tensors[tensor.name] = tensor
    return tensors


def checkpoint_files(path: Path, preferred: str | None = None) -> list[Path]:
    """Return the files that make up the checkpoint at `path`."""
    if path.is_dir():
        return _directory_files(path, preferred)
    if not exists(path):
        raise ModelNotFoundError(f"checkpoint {path} does not exist")
    if path.name.endswith(".index.json"):
        return _indexed_files(path)
    if path.suffix in PICKLE_SUFFIXES:
        raise CheckpointError(
            f"{path}: files of type {path.suffix} can run code when they are loaded",
            "give a .safetensors or .ckpt file (transformers' save_pretrained writes safetensors)",
        )
    if path.suffix not in (".safetensors", ".ckpt"):
        raise CheckpointError(f"{path}: not a checkpoint", "accepted: .safetensors, .ckpt, .gguf, or a directory")
    return [path]


def rank_folders(path: Path, ranks: int) -> list[Path]:
    """Return the directories rank_0, rank_1, ... of a split checkpoint; an empty list if it is not split.

    Raises:
        CheckpointError: it is split for another number of ranks.
    """
    found = {
        int(folder.name[5:]): folder for folder in path.glob("rank_*") if re.fullmatch(r"rank_[0-9]{1,6}", folder.name)
    }
    # Data-parallel copies of the model may have directories too, with the same contents.
    if found and (sorted(found) != list(range(len(found))) or len(found) % ranks or (ranks == 1 and len(found) > 1)):
        raise CheckpointError(
            f"{path} is split for {len(found)} ranks (rank_{' rank_'.join(map(str, sorted(found)[:4]))} ...), this run "
            f"has model_parallel {ranks}",
            "give the whole checkpoint, or as many ranks",
        )
    return [found[rank] for rank in sorted(found)]


def _directory_files(directory: Path, preferred: str | None) -> list[Path]:
    if preferred == "ckpt" and any(directory.glob("*.ckpt")):
        return _ckpt_files(directory)
    if (directory / INDEX_NAME).exists():
        return _indexed_files(directory / INDEX_NAME)
    if (directory / "model.safetensors").exists():
        return [directory / "model.safetensors"]
    shards = sorted(directory.glob("*.safetensors"))
    if shards:
        return shards
    if any(directory.glob("*.ckpt")):
        return _ckpt_files(directory)
    pickled = sorted(file.name for file in directory.iterdir() if file.suffix in PICKLE_SUFFIXES)
    if pickled:
        return checkpoint_files(directory / pickled[0])
    raise ModelNotFoundError(f"{directory} holds no weights", "expected *.safetensors or *.ckpt there")


def _ckpt_files(directory: Path) -> list[Path]:
    ckpts = sorted(directory.glob("*.ckpt"))
    if len(ckpts) > 1:
        names = ", ".join(file.name for file in ckpts[:5])
        raise CheckpointError(f"{directory} holds {len(ckpts)} .ckpt files ({names})", "name the one to load")
    return ckpts


def _indexed_files(index: Path) -> list[Path]:
    weight_map = read_json_object(index, CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{index}: not a safetensors index", "expected a 'weight_map' of tensors to files")
    for name in weight_map.values():
        if not is_text(name) or not name or Path(name).name != name:
            raise CheckpointError(f"{index}: shard {shown(name)} is not a file name", "shards lie beside their index")
    names = sorted(set(weight_map.values()))
    missing = [name for name in names if not exists(index.parent / name)]
    if missing:
        listed = ", ".join(missing[:5])
        raise CheckpointError(f"{index.parent}: {len(missing)} of {len(names)} shards are missing ({listed})")
    return [index.parent / name for name in names]
